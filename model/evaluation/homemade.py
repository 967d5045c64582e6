"""Eight zero-shot tasks made from a run's own held-out text, in the shapes of the eight standard ones.

They ask little enough that a model of any size, on any text, has something it can be above chance at. Every item is
made from documents that were never trained on; the same documents always give the same items.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from model.data.document import Document

WORD = re.compile(r"[^\W\d_]{3,}")
CONTEXT = 280  # characters before what is asked; they fit the context of the smallest preset
ENDING = 60  # characters of a longer choice


class Item(NamedTuple):
    """A question: after which context is which continuation right? The two lists are as long as there are choices."""

    contexts: list[str]
    continuations: list[str]
    gold: int
    chance: float


class Place(NamedTuple):
    """A word in a document, with room before and after it."""

    document: int
    start: int
    end: int


class Text:
    """The held-out documents as the task makers need them."""

    def __init__(self, documents: list[Document]):
        self.texts = [document.text for document in documents]
        self.words = [list(WORD.finditer(text)) for text in self.texts]
        self.counts = Counter(match[0] for words in self.words for match in words)
        self.places = [
            Place(number, match.start(), match.end())
            for number, words in enumerate(self.words)
            for match in words
            if match.start() >= CONTEXT and match.end() + ENDING <= len(self.texts[number])
        ]

    def before(self, place: Place) -> str:
        """What stands before the word, from the beginning of a word on, without the last space."""
        text = self.texts[place.document][place.start - CONTEXT : place.start]
        return text[text.find(" ") + 1 :].rstrip(" ")

    def gap(self, place: Place) -> str:
        """The spaces between `before` and the word: they belong to what is scored."""
        text = self.texts[place.document][: place.start]
        return text[len(text.rstrip(" ")) :]

    def word(self, place: Place) -> str:
        return self.texts[place.document][place.start : place.end]

    def passage(self, place: Place) -> str:
        """The word and what follows it, to the end of a word."""
        text = self.texts[place.document][place.start : place.end + ENDING]
        return text[: text.rfind(" ")] if " " in text else text

    def similar(self, place: Place, among: list[str], random_: random.Random, count: int) -> list[str] | None:
        """Other words about as long and as frequent as this one, or None where there are not enough."""
        word = self.word(place)
        fit = sorted(
            {
                w
                for w in among
                if w.lower() != word.lower()
                and abs(len(w) - len(word)) <= 2
                and w[0].isupper() == word[0].isupper()
                and 0.25 <= self.counts[w] / self.counts[word] <= 4
            }
        )
        return random_.sample(fit, count) if len(fit) >= count else None


def _choice(gold: str, others: list[str], context: str, random_: random.Random) -> Item:
    choices = [gold, *others]
    random_.shuffle(choices)
    return Item([context] * len(choices), choices, choices.index(gold), 1 / len(choices))


def _alike(gold: str, others: Iterable[str]) -> list[str]:
    """Up to three different passages of exactly this one's length."""
    return list(dict.fromkeys(other for other in others if len(other) == len(gold) and other != gold))[:3]


def ending(text: Text, place: Place, random_: random.Random) -> Item | None:
    """HellaSwag's shape: how does the passage go on? The others are passages of other documents."""
    gold = text.passage(place)
    elsewhere = [p for p in random_.sample(text.places, min(200, len(text.places))) if p.document != place.document]
    others = _alike(gold, (text.passage(p) for p in elsewhere))
    gap = text.gap(place)
    return _choice(gap + gold, [gap + o for o in others], text.before(place), random_) if len(others) == 3 else None


def word(text: Text, place: Place, random_: random.Random) -> Item | None:
    """ARC-Easy's shape: which word comes next? The others are about as long and as frequent."""
    others = text.similar(place, random_.sample(sorted(text.counts), min(2000, len(text.counts))), random_, 3)
    gap = text.gap(place)
    return _choice(gap + text.word(place), [gap + o for o in others], text.before(place), random_) if others else None


def word_here(text: Text, place: Place, random_: random.Random) -> Item | None:
    """ARC-Challenge's shape: the same, with the other words taken from the same document."""
    others = text.similar(place, [match[0] for match in text.words[place.document]], random_, 3)
    gap = text.gap(place)
    return _choice(gap + text.word(place), [gap + o for o in others], text.before(place), random_) if others else None


def filling(text: Text, place: Place, random_: random.Random) -> Item | None:
    """WinoGrande's shape: which of two words makes what follows it likelier? Only what follows is scored."""
    others = text.similar(place, [match[0] for match in text.words[place.document]], random_, 1)
    if others is None:
        return None
    choices = [text.word(place), others[0]]
    random_.shuffle(choices)
    before = text.before(place) + text.gap(place)
    after = text.passage(place)[place.end - place.start :]
    if not after.strip():
        return None
    return Item([before + c for c in choices], [after] * 2, choices.index(text.word(place)), 0.5)


def order(text: Text, place: Place, random_: random.Random) -> Item | None:
    """PIQA's shape: which of two makes sense? The other is the same words in another order."""
    words = text.passage(place).split(" ")
    mixed = random_.sample(words, len(words))
    gap = text.gap(place)
    if len(set(words)) < 4 or mixed == words:
        return None
    return _choice(gap + " ".join(words), [gap + " ".join(mixed)], text.before(place), random_)


def follows(text: Text, place: Place, random_: random.Random) -> Item | None:
    """BoolQ's shape: a passage, a question about it, yes or no. Small models are at chance here."""
    yes = random_.random() < 0.5
    other = random_.choice(text.places)
    if other.document == place.document:
        return None
    asked = text.word(place) if yes else text.word(other)
    before = text.before(place)
    if (asked in before) != yes:
        return None
    context = f"{before}\nQuestion: does {asked} stand above?\nAnswer:"
    return Item([context] * 2, [" no", " yes"], int(yes), 0.5)


def source(text: Text, place: Place, random_: random.Random) -> Item | None:
    """OpenBookQA's shape: given a fact, which passage goes with it? All come from elsewhere, one from the same text."""
    here = [p for p in random_.sample(text.places, min(400, len(text.places))) if p.document == place.document]
    gold = next((text.passage(p) for p in here if abs(p.start - place.start) > 2 * CONTEXT), None)
    if gold is None:
        return None
    elsewhere = [p for p in random_.sample(text.places, min(200, len(text.places))) if p.document != place.document]
    others = _alike(gold, (text.passage(p) for p in elsewhere))
    return _choice("\n" + gold, ["\n" + o for o in others], text.before(place), random_) if len(others) == 3 else None


def last_word(text: Text, place: Place, random_: random.Random) -> Item | None:
    """LAMBADA's shape: say the next word, one that was said before, with all the vocabulary to choose from.

    Chance is that of naming some word of the context.
    """
    before, said = text.before(place), text.word(place)
    named = set(WORD.findall(before))
    return Item([before], [text.gap(place) + said], 0, 1 / len(named)) if said in named else None


TASKS: dict[str, Callable[[Text, Place, random.Random], Item | None]] = {
    "ending": ending,
    "word": word,
    "word_here": word_here,
    "filling": filling,
    "order": order,
    "follows": follows,
    "source": source,
    "last_word": last_word,
}


def items(documents: list[Document], count: int, seed: int = 0) -> dict[str, list[Item]]:
    """Up to `count` items of each task; fewer where the text does not give them."""
    text = Text(documents)
    found: dict[str, list[Item]] = {}
    for name, make in TASKS.items():
        random_ = random.Random(f"{name} {seed}")
        tried = random_.sample(text.places, min(len(text.places), 20 * count))
        made = (make(text, place, random_) for place in tried)
        found[name] = [item for item, _ in zip((i for i in made if i), range(count), strict=False)]
    return found
