"""Blocks, in their order → the shards of the corpus: duplicates out, weights applied, held-out documents put aside.

What is decided here depends on all documents before, so that one process does it, from the blocks' indexes alone. It is
cheap, and begins anew after an interruption: the shards that stand are passed over, and blocks whose tokens all lie in
whole shards are removed on the way.
"""

import collections
from pathlib import Path
from typing import IO, Any

import numpy as np

from model.data import blocks
from model.data.blocks import Block, Report
from model.data.recipe import Recipe
from model.data.shards import ShardWriter


class Seen:
    """A growing set of 64-bit hashes: 8 bytes for each, in sorted runs that are merged as they become equal in size."""

    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []

    def add(self, hashes: np.ndarray) -> np.ndarray:
        """`[n]` bool: which of these are here for the first time."""
        values, first = np.unique(hashes, return_index=True)
        new = np.ones(len(values), bool)
        for run in self._runs:
            new &= run[np.minimum(np.searchsorted(run, values), len(run) - 1)] != values
        run = values[new]
        if len(run):
            while self._runs and len(self._runs[-1]) <= 2 * len(run):
                run = np.union1d(self._runs.pop(), run)
            self._runs.append(run)
        fresh = np.zeros(len(hashes), bool)
        fresh[first[new]] = True
        return fresh


class Assembly:
    """Takes parts in their order; `close` makes the folder of shards whole."""

    def __init__(self, out: Path, folder: Path, vocab_size: int, recipe: Recipe, documents: IO[bytes]):
        """`folder` holds the blocks; `documents` takes the held-out texts as JSON lines."""
        self.folder, self.recipe, self.documents = folder, recipe, documents
        self.train = ShardWriter(out / "train", vocab_size, recipe.shard_tokens, resumes=True)
        self.heldout = ShardWriter(out / "heldout", vocab_size, recipe.shard_tokens)
        self.kept: collections.Counter[str] = collections.Counter()  # documents by source
        self.dropped: collections.Counter[str] = collections.Counter()
        self.near: collections.Counter[str] = collections.Counter()
        self.notes: list[str] = []
        self.sources: list[tuple[str, int]] = []  # of the held-out documents, in their order: each, and how many
        self.read = self.learned = self.held = self.train_bytes = self.heldout_bytes = self.longest = 0
        self.ends = 0  # documents of the training part, counted as often as they stand in it
        self.longest_name = ""
        self.copies = 0  # documents whose text was there before, kept or not
        self._seen = Seen()
        self._standing: collections.deque[tuple[int, Path]] = collections.deque()  # tokens until here, in this file

    def full(self, source: str) -> bool:
        """Has this source given as many documents as the recipe asks for?"""
        return bool(self.recipe.limit) and self.kept[source] >= self.recipe.limit

    def add(self, part: int, source: str, report: Report) -> None:
        """The blocks of a part that is through."""
        self.read += report.read
        self.dropped.update(report.dropped)
        self.near.update(report.near)
        self.notes += report.notes
        if report.longest > self.longest:
            self.longest, self.longest_name = report.longest, report.longest_name
        for number in range(report.blocks):
            self._block(part, number, source)

    def close(self, **facts: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Write what is left; returns the manifests of the training part and of the held-out one."""
        train = self.train.close(bytes=self.train_bytes, **facts)
        return train, self.heldout.close(bytes=self.heldout_bytes, **facts)

    def _block(self, part: int, number: int, source: str) -> None:
        block = blocks.read(self.folder, part, number)
        keep = self._seen.add(block.hashes)
        self.copies += int((~keep).sum())
        if self.recipe.deduplicate:
            self.dropped["duplicate"] += int((~keep).sum())
        else:
            keep[:] = True
        if self.recipe.limit:
            keep &= np.cumsum(keep) <= self.recipe.limit - self.kept[source]
        self.kept[source] += int(keep.sum())
        held = blocks.heldout(block.hashes, self.recipe.heldout_fraction)
        self._hold_out(block, held, keep, source)
        self._learn(block, part, number, held, keep, source)

    def _hold_out(self, block: Block, held: np.ndarray, keep: np.ndarray, source: str) -> None:
        chosen = keep[held]
        lengths = block.lengths[held]
        self.heldout.extend(block.heldout_tokens[np.repeat(chosen, lengths)], lengths[chosen])
        texts = block.heldout_texts.tobytes().splitlines(keepends=True)
        self.documents.writelines(text for text, taken in zip(texts, chosen, strict=True) if taken)
        self.held += int(chosen.sum())
        if self.sources and self.sources[-1][0] == source:
            self.sources[-1] = (source, self.sources[-1][1] + int(chosen.sum()))
        else:
            self.sources.append((source, int(chosen.sum())))
        self.heldout_bytes += int(block.sizes[held][chosen].sum())

    def _learn(self, block: Block, part: int, number: int, held: np.ndarray, keep: np.ndarray, source: str) -> None:
        """Give the training documents to the shards as often as their source's weight says."""
        lengths, sizes, hashes = (array[~held] for array in (block.lengths, block.sizes, block.hashes))
        file, tokens, weight = blocks.tokens(self.folder, part, number), None, self.recipe.source[source]
        while weight > 0:
            # Other bits of the hash than those that hold out decide which documents a fraction takes.
            share = (hashes * np.uint64(0x9E3779B97F4A7C15)).astype(np.float64) < min(weight, 1) * 2**64
            chosen = keep[~held] & share
            self.learned += int(chosen.sum()) if weight == self.recipe.source[source] else 0
            self.ends += int(chosen.sum())
            self.train_bytes += int(sizes[chosen].sum())
            count = int(lengths[chosen].sum())
            if self.train.given + count <= self.train.written:
                self.train.skip(count)
            else:
                tokens = np.load(file, allow_pickle=False) if tokens is None else tokens
                self.train.extend(tokens[np.repeat(chosen, lengths)], lengths[chosen])
            weight -= 1
        self._standing.append((self.train.given, file))
        while self._standing and self._standing[0][0] <= self.train.written:
            self._standing.popleft()[1].unlink(missing_ok=True)
