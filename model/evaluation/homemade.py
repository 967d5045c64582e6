"""Eight zero-shot tasks built from a run's own held-out text, in the forms of the eight standard ones.

They are easy enough that a model of any size, trained on any text, can be above chance at some of them. Items are built
from documents that were never trained on, and the same documents always give the same items. Wrong choices are as long
as the right one and about as frequent: ordered by frequency, the right one is at each rank equally often.
"""

import random
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from model.data.document import Document
from model.evaluation.items import Item

WORD = re.compile(r"[^\W\d_]{3,}")
CONTEXT = 280  # characters of an item's context; they fit the context of the smallest preset
ENDING = 60  # characters of a longer choice
SAMPLED_PLACES = 600  # among which passages of other documents are searched for
SHUFFLES = 12

Cost = Callable[[str], float]  # how frequent a text is by its tokens alone: its log-probability under a unigram model


class Place(NamedTuple):
    """A word in a document, with CONTEXT characters before it and ENDING after it."""

    document: int
    start: int
    end: int


class Text:
    """The held-out documents, with their words and places."""

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
        """The context before the word; it begins at the start of a word and has no space at the end."""
        text = self.texts[place.document][place.start - CONTEXT : place.start]
        return text[text.find(" ") + 1 :].rstrip(" ")

    def gap(self, place: Place) -> str:
        """The spaces between `before` and the word: they are scored with the word."""
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
        sample = random_.sample(self.places, min(SAMPLED_PLACES, len(self.places)))
        return [self.passage(other) for other in sample if other.document != place.document]

    def similar(self, place: Place, among: Iterable[str], random_: random.Random, count: int) -> list[str] | None:
        """Other words as long and about as frequent as this one, or None where there are not enough."""
        word = self.word(place)
        candidates = {w for w in among if w.lower() != word.lower() and w[0].isupper() == word[0].isupper()}
        return self.alike(word, candidates, random_, count, self.gap(place))

    def alike(
        self, right: str, others: Iterable[str], random_: random.Random, count: int, gap: str = ""
    ) -> list[str] | None:
        """`count` of the others, exactly as long as `right` and nearest to it in frequency. How many of them are more
        frequent than it is drawn at random. None where there are not enough on either side."""
        costs = {other: self.cost(gap + other) for other in set(others) if len(other) == len(right) and other != right}
        own = self.cost(gap + right)
        above = sorted((other for other in costs if costs[other] > own), key=lambda other: (costs[other], other))
        below = sorted((other for other in costs if costs[other] <= own), key=lambda other: (-costs[other], other))
        # Checked for every draw: else the most frequent word could only be drawn as the right one.
        if min(len(above), len(below)) < count:
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
    """HellaSwag's form: how does the passage continue? The wrong choices are passages of other documents."""
    right, gap = text.passage(place), text.gap(place)
    others = text.alike(right, text.elsewhere(place, random_), random_, 3, gap)
    return _choice(right, others, text.before(place), random_, gap)


def word(text: Text, place: Place, random_: random.Random) -> Item | None:
    """ARC-Easy's form: which word comes next?"""
    others = text.similar(place, random_.sample(text.vocabulary, min(2000, len(text.vocabulary))), random_, 3)
    return _choice(text.word(place), others, text.before(place), random_, text.gap(place))


def word_here(text: Text, place: Place, random_: random.Random) -> Item | None:
    """ARC-Challenge's form: which word comes next? The wrong choices are words of the same document."""
    others = text.similar(place, (match[0] for match in text.words[place.document]), random_, 3)
    return _choice(text.word(place), others, text.before(place), random_, text.gap(place))


def filling(text: Text, place: Place, random_: random.Random) -> Item | None:
    """WinoGrande's form: which of two words makes the text after it likelier? Only that text is scored."""
    others = text.similar(place, (match[0] for match in text.words[place.document]), random_, 1)
    after = text.passage(place)[place.end - place.start :]
    if others is None or not after.strip():
        return None
    choices = [text.word(place), others[0]]
    random_.shuffle(choices)
    before = text.before(place) + text.gap(place)
    return Item([before + c for c in choices], [after] * 2, choices.index(text.word(place)), 0.5)


def order(text: Text, place: Place, random_: random.Random) -> Item | None:
    """PIQA's form: which of two makes sense? The wrong choice is the same words in another order."""
    right, gap = text.passage(place), text.gap(place)
    words = right.split(" ")
    if len(set(words)) < 4:
        return None
    shuffled = [" ".join(random_.sample(words, len(words))) for _ in range(SHUFFLES)]
    return _choice(right, text.alike(right, shuffled, random_, 1, gap), text.before(place), random_, gap)


def follows(text: Text, place: Place, random_: random.Random) -> Item | None:
    """BoolQ's form: a passage, a question about it, yes or no. Small models are at chance here.

    The question names a word of the passage, or one as long and about as frequent that is not in it.
    """
    before, yes = text.before(place), random_.random() < 0.5
    words = WORD.findall(before)
    if not words:
        return None
    present = random_.choice(words)
    sample = random_.sample(text.vocabulary, min(2000, len(text.vocabulary)))
    absent = text.alike(present, (w for w in sample if w not in before), random_, 1, " ")
    if absent is None:
        return None
    context = f"{before}\nQuestion: does {present if yes else absent[0]} stand above?\nAnswer:"
    return Item([context] * 2, [" no", " yes"], int(yes), 0.5)


def source(text: Text, place: Place, random_: random.Random) -> Item | None:
    """OpenBookQA's form: which passage belongs to a fact? The right one is from another part of the same document."""
    same = [p for p in random_.sample(text.places, min(400, len(text.places))) if p.document == place.document]
    right = next((text.passage(p) for p in same if abs(p.start - place.start) > 2 * CONTEXT), None)
    if right is None:
        return None
    others = text.alike(right, text.elsewhere(place, random_), random_, 3, "\n")
    return _choice(right, others, text.before(place), random_, "\n")


def last_word(text: Text, place: Place, random_: random.Random) -> Item | None:
    """LAMBADA's form: predict the next word, one of the context's words, out of the whole vocabulary.

    Chance is that of guessing among the words of the context.
    """
    before, target = text.before(place), text.word(place)
    words = set(WORD.findall(before))
    return Item([before], [text.gap(place) + target], 0, 1 / len(words)) if target in words else None


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
    """Up to `count` items of each task; fewer where the text is too short for them."""
    text = Text(documents, cost)
    tasks: dict[str, list[Item]] = {}
    for name, build in TASKS.items():
        random_ = random.Random(f"{name} {seed}")
        places = random_.sample(text.places, min(len(text.places), 20 * count))
        candidates = (build(text, place, random_) for place in places)
        tasks[name] = [item for item, _ in zip((i for i in candidates if i), range(count), strict=False)]
    return tasks
