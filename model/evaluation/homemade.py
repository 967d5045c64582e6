"""Eight zero-shot tasks made from a run's own held-out text, in the shapes of the eight standard ones.

They ask little enough that a model of any size, on any text, has something it can be above chance at. Every item is
made from documents that were never trained on; the same documents always give the same items. Wrong choices are as long
as the right one, and as frequent: of the choices by their frequency, the right one is as often the first as the last.
"""

import random
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from model.data.document import Document
from model.evaluation.items import Item

WORD = re.compile(r"[^\W\d_]{3,}")
CONTEXT = 280  # characters before what is asked; they fit the context of the smallest preset
ENDING = 60  # characters of a longer choice
LOOKED = 600  # places of other documents among which a passage's likes are looked for
SHUFFLES = 12

Cost = Callable[[str], float]  # how frequent a text is by its parts alone: its log-probability under a unigram


class Place(NamedTuple):
    """A word in a document, with room before and after it."""

    document: int
    start: int
    end: int


class Text:
    """The held-out documents as the task makers need them."""

    def __init__(self, documents: list[Document], cost: Cost):
        self.texts = [document.text for document in documents]
        self.cost = cost
        self.words = [list(WORD.finditer(text)) for text in self.texts]
        self.vocabulary = sorted({match[0] for words in self.words for match in words})
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

    def elsewhere(self, place: Place, random_: random.Random) -> list[str]:
        """Passages of other documents."""
        looked = random_.sample(self.places, min(LOOKED, len(self.places)))
        return [self.passage(other) for other in looked if other.document != place.document]

    def similar(self, place: Place, among: Iterable[str], random_: random.Random, count: int) -> list[str] | None:
        """Other words as long and as frequent as this one, or None where there are not enough."""
        word = self.word(place)
        fit = {w for w in among if w.lower() != word.lower() and w[0].isupper() == word[0].isupper()}
        return self.alike(word, fit, random_, count, self.gap(place))

    def alike(
        self, right: str, others: Iterable[str], random_: random.Random, count: int, gap: str = ""
    ) -> list[str] | None:
        """So many of the others that are exactly as long, and nearest in frequency: some above, some below, as luck has
        it. None where there are not enough on either side."""
        costs = {other: self.cost(gap + other) for other in set(others) if len(other) == len(right) and other != right}
        own = self.cost(gap + right)
        above = sorted((other for other in costs if costs[other] > own), key=lambda other: (costs[other], other))
        below = sorted((other for other in costs if costs[other] <= own), key=lambda other: (-costs[other], other))
        if min(len(above), len(below)) < count:  # whatever luck says: else the most frequent word would always be right
            return None
        higher = random_.randrange(count + 1)
        return above[:higher] + below[: count - higher]


def _choice(right: str, others: list[str] | None, context: str, random_: random.Random, gap: str = "") -> Item | None:
    if others is None:
        return None
    choices = [right, *others]
    random_.shuffle(choices)
    return Item([context] * len(choices), [gap + c for c in choices], choices.index(right), 1 / len(choices))


def ending(text: Text, place: Place, random_: random.Random) -> Item | None:
    """HellaSwag's shape: how does the passage go on? The others are passages of other documents."""
    right, gap = text.passage(place), text.gap(place)
    others = text.alike(right, text.elsewhere(place, random_), random_, 3, gap)
    return _choice(right, others, text.before(place), random_, gap)


def word(text: Text, place: Place, random_: random.Random) -> Item | None:
    """ARC-Easy's shape: which word comes next?"""
    others = text.similar(place, random_.sample(text.vocabulary, min(2000, len(text.vocabulary))), random_, 3)
    return _choice(text.word(place), others, text.before(place), random_, text.gap(place))


def word_here(text: Text, place: Place, random_: random.Random) -> Item | None:
    """ARC-Challenge's shape: the same, and the other words are used in the same document."""
    others = text.similar(place, (match[0] for match in text.words[place.document]), random_, 3)
    return _choice(text.word(place), others, text.before(place), random_, text.gap(place))


def filling(text: Text, place: Place, random_: random.Random) -> Item | None:
    """WinoGrande's shape: which of two words makes what follows it likelier? Only what follows is scored."""
    others = text.similar(place, (match[0] for match in text.words[place.document]), random_, 1)
    after = text.passage(place)[place.end - place.start :]
    if others is None or not after.strip():
        return None
    choices = [text.word(place), others[0]]
    random_.shuffle(choices)
    before = text.before(place) + text.gap(place)
    return Item([before + c for c in choices], [after] * 2, choices.index(text.word(place)), 0.5)


def order(text: Text, place: Place, random_: random.Random) -> Item | None:
    """PIQA's shape: which of two makes sense? The other is the same words in another order."""
    right, gap = text.passage(place), text.gap(place)
    words = right.split(" ")
    if len(set(words)) < 4:
        return None
    mixed = [" ".join(random_.sample(words, len(words))) for _ in range(SHUFFLES)]
    return _choice(right, text.alike(right, mixed, random_, 1, gap), text.before(place), random_, gap)


def follows(text: Text, place: Place, random_: random.Random) -> Item | None:
    """BoolQ's shape: a passage, a question about it, yes or no. Small models are at chance here.

    The word that is asked about is one of the passage, or one as long and as frequent that is not in it.
    """
    before, yes = text.before(place), random_.random() < 0.5
    said = WORD.findall(before)
    if not said:
        return None
    asked = random_.choice(said)
    sampled = random_.sample(text.vocabulary, min(2000, len(text.vocabulary)))
    others = text.alike(asked, (w for w in sampled if w not in before), random_, 1, " ")
    if others is None:
        return None
    context = f"{before}\nQuestion: does {asked if yes else others[0]} stand above?\nAnswer:"
    return Item([context] * 2, [" no", " yes"], int(yes), 0.5)


def source(text: Text, place: Place, random_: random.Random) -> Item | None:
    """OpenBookQA's shape: given a fact, which passage goes with it? All come from elsewhere, one from the same text."""
    here = [p for p in random_.sample(text.places, min(400, len(text.places))) if p.document == place.document]
    right = next((text.passage(p) for p in here if abs(p.start - place.start) > 2 * CONTEXT), None)
    if right is None:
        return None
    others = text.alike(right, text.elsewhere(place, random_), random_, 3, "\n")
    return _choice(right, others, text.before(place), random_, "\n")


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


def items(documents: list[Document], cost: Cost, count: int, seed: int = 0) -> dict[str, list[Item]]:
    """Up to `count` items of each task; fewer where the text does not give them."""
    text = Text(documents, cost)
    found: dict[str, list[Item]] = {}
    for name, make in TASKS.items():
        random_ = random.Random(f"{name} {seed}")
        tried = random_.sample(text.places, min(len(text.places), 20 * count))
        made = (make(text, place, random_) for place in tried)
        found[name] = [item for item, _ in zip((i for i in made if i), range(count), strict=False)]
    return found
