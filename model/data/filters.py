"""Document filters: quality rules for any language, and overlap with evaluation items."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from model.data import readers
from model.data.document import Flaw
from model.data.folders import listing
from model.data.recipe import Recipe
from model.data.strings import shown, strings
from model.errors import KodaError

WORDS = 13  # consecutive words that two texts share: Brown et al. 2020, appendix C
WORD = re.compile(r"\w+")
SYMBOL = re.compile(r"[^\w\s]")
REPEATED = 0.3  # share of the characters that are in repeated lines: Rae et al. 2021, table A1
SYMBOLS = 0.5  # share of the characters that are neither letters, digits, nor white space
REPLACED = 0.001  # share of U+FFFD: letters that an earlier decoding lost


def reason(text: str, recipe: Recipe) -> str:
    """The reason for which a document is left out; empty if it is kept."""
    if len(text) < recipe.shortest:
        return "too_short"
    if recipe.longest and len(text) > recipe.longest:
        return "too_long"
    if not recipe.quality:
        return ""
    if text.count("\ufffd") > REPLACED * len(text):
        return "letters_lost"
    if len(SYMBOL.findall(text)) > SYMBOLS * len(text):
        return "symbols"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    fresh = sum(map(len, dict.fromkeys(lines)))
    return "repeated_lines" if fresh < (1 - REPEATED) * sum(map(len, lines)) else ""


class Overlap:
    """Finds documents that share WORDS consecutive words with an evaluation item, ignoring case and punctuation."""

    def __init__(self, folder: str):
        """Reads every string in the `.jsonl` files of `folder`. Raises KodaError if there are none."""
        paths = self.files(folder)
        self.names = [shown(path.stem) for path in paths]
        self._words: dict[str, int] = {}
        hashes = [np.unique(np.concatenate([*self._items(path), np.empty(0, np.uint64)])) for path in paths]
        grams, owners = np.concatenate(hashes), np.repeat(np.arange(len(paths)), [len(one) for one in hashes])
        order = np.argsort(grams, kind="stable")
        self._grams, self._owners = grams[order], owners[order]

    @staticmethod
    def files(folder: str) -> list[Path]:
        """The files of items in a folder. Raises KodaError if there are none."""
        paths = listing(Path(folder), (".jsonl",)).paths
        if not paths:
            raise KodaError(f"tokenize.contamination = {folder!r} contains no .jsonl file of evaluation items.")
        return paths

    def near(self, text: str) -> str:
        """The name of the file with an item that `text` overlaps with; empty if there is none."""
        grams = self._hashes(text)
        if not len(grams) or not len(self._grams):
            return ""
        at = np.minimum(np.searchsorted(self._grams, grams), len(self._grams) - 1)
        hits = at[self._grams[at] == grams]
        return self.names[self._owners[hits[0]]] if len(hits) else ""

    def _items(self, path: Path) -> Iterator[np.ndarray]:
        for row in readers.rows(path):
            if isinstance(row, Flaw):
                raise KodaError(f"{row.name}: {row.detail}. tokenize.contamination takes rows of evaluation items.")
            for text in strings(row[1]):
                for word in WORD.findall(text.lower()):
                    self._words.setdefault(word, _hash(word))
                yield self._hashes(text)

    def _hashes(self, text: str) -> np.ndarray:
        """A hash of each WORDS consecutive words: a polynomial in the words' hashes. A word of no item counts as 0."""
        words = WORD.findall(text.lower())
        values = np.fromiter((self._words.get(word, 0) for word in words), np.uint64, len(words))
        count = len(values) - WORDS + 1
        if count < 1:
            return np.empty(0, np.uint64)
        hashes = np.zeros(count, np.uint64)
        for offset in range(WORDS):
            hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + values[offset : offset + count]
        return hashes


def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest())
