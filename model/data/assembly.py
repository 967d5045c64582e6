"""Blocks, in their order → the shards of the corpus: duplicates removed, weights applied, held-out documents separated.

Each decision here depends on all earlier documents, so that one process makes them, from the blocks' indexes alone. It
is cheap, and starts from the beginning after an interruption: complete shards are kept and not written again. A block
is removed as soon as all of its tokens are in complete shards.
"""

import collections
from pathlib import Path
from typing import IO, Any

import numpy as np

from model.data import blocks
from model.data.blocks import Block, Report
from model.data.heldout import heldout
from model.data.recipe import Recipe
from model.data.shards import ShardWriter


class Seen:
    """A growing set of 64-bit hashes: 8 bytes each, in sorted runs; runs of similar size are merged."""

    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []

    def add(self, hashes: np.ndarray) -> np.ndarray:
        """`[n]` bool: which of these were not in the set and occur here for the first time."""
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
    """Takes the reports of parts in their order; `close` completes the folder of shards."""

    def __init__(self, out: Path, folder: Path, vocab_size: int, recipe: Recipe, texts: IO[bytes]):
        """`folder` contains the blocks; the held-out documents are written to `texts` as JSON lines."""
        self.folder, self.recipe, self.texts = folder, recipe, texts
        self.train = ShardWriter(out / "train", vocab_size, recipe.shard_tokens, resumes=True)
        self.heldout = ShardWriter(out / "heldout", vocab_size, recipe.shard_tokens)
        self.kept: collections.Counter[str] = collections.Counter()  # documents by source
        self.dropped: collections.Counter[str] = collections.Counter()
        self.near: collections.Counter[str] = collections.Counter()
        self.notes: list[str] = []
        self.noted = 0  # decisions, those without a note of their own among them
        self.sources: list[tuple[str, int]] = []  # of consecutive held-out documents: their source and number
        self.read = 0  # documents, before any was left out
        self.train_documents = self.heldout_documents = self.train_bytes = self.heldout_bytes = 0
        self.longest, self.longest_name = 0, ""  # characters
        self.ends = 0  # documents of the training part, repeated ones as often as they occur
        self.markers = 0  # end-of-text markers that were read as letters
        self.copies = 0  # documents whose text occurred before, kept or not
        self._seen = Seen()
        # Blocks whose tokens are not yet all in complete shards: the stream's position after the block, and its file.
        self._unwritten: collections.deque[tuple[int, Path]] = collections.deque()

    @property
    def documents(self) -> int:
        """Documents of both parts."""
        return self.train_documents + self.heldout_documents

    def full(self, source: str) -> bool:
        """Has this source reached the recipe's limit of documents?"""
        return bool(self.recipe.limit) and self.kept[source] >= self.recipe.limit

    def add(self, part: int, source: str, report: Report) -> None:
        """Add the blocks of a part that was read to its end."""
        self.read += report.read
        self.dropped.update(report.dropped)
        self.near.update(report.near)
        self.notes += report.notes
        self.noted += report.noted
        self.markers += report.markers
        if report.longest > self.longest:
            self.longest, self.longest_name = report.longest, report.longest_name
        for number in range(report.blocks):
            self._block(part, number, source)

    def close(self, **facts: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Write the last shards; returns the manifests of the training part and of the held-out part."""
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
        is_out = heldout(block.hashes, self.recipe.heldout_fraction)
        self._add_heldout(block, is_out, keep, source)
        self._add_train(block, part, number, is_out, keep, source)

    def _add_heldout(self, block: Block, is_out: np.ndarray, keep: np.ndarray, source: str) -> None:
        chosen = keep[is_out]
        lengths = block.lengths[is_out]
        self.heldout.extend(block.heldout_tokens[np.repeat(chosen, lengths)], lengths[chosen])
        texts = block.heldout_texts.tobytes().splitlines(keepends=True)
        self.texts.writelines(text for text, is_chosen in zip(texts, chosen, strict=True) if is_chosen)
        self.heldout_documents += int(chosen.sum())
        if self.sources and self.sources[-1][0] == source:
            self.sources[-1] = (source, self.sources[-1][1] + int(chosen.sum()))
        else:
            self.sources.append((source, int(chosen.sum())))
        self.heldout_bytes += int(block.sizes[is_out][chosen].sum())

    def _add_train(
        self, block: Block, part: int, number: int, is_out: np.ndarray, keep: np.ndarray, source: str
    ) -> None:
        """Add the training documents to the shards, as often as their source's weight requires."""
        lengths, sizes, hashes = (array[~is_out] for array in (block.lengths, block.sizes, block.hashes))
        file, tokens, weight = blocks.tokens(self.folder, part, number), None, self.recipe.source[source]
        while weight > 0:
            # A fraction selects documents by other bits of the hash than the held-out part.
            share = (hashes * np.uint64(0x9E3779B97F4A7C15)).astype(np.float64) < min(weight, 1) * 2**64
            chosen = keep[~is_out] & share
            self.train_documents += int(chosen.sum()) if weight == self.recipe.source[source] else 0
            self.ends += int(chosen.sum())
            self.train_bytes += int(sizes[chosen].sum())
            count = int(lengths[chosen].sum())
            if self.train.position + count <= self.train.written:
                self.train.skip(count)
            else:
                tokens = np.load(file, allow_pickle=False) if tokens is None else tokens
                self.train.extend(tokens[np.repeat(chosen, lengths)], lengths[chosen])
            weight -= 1
        self._unwritten.append((self.train.position, file))
        while self._unwritten and self._unwritten[0][0] <= self.train.written:
            self._unwritten.popleft()[1].unlink(missing_ok=True)
