"""Batches by step number: row r of step s depends on (seed, s, r) alone, so that resuming needs one integer.

Letters in names: B batch, T time, S time + 1: a row with its last target.
"""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from model.data.order import row_at
from model.data.shards import STARTS, TRAINED, Shards
from model.errors import KodaError


class Batch(NamedTuple):
    """One step's data; `inputs` and `targets` are the same text, one token apart."""

    inputs_BT: Any  # int32; numpy arrays from the loader, JAX arrays inside a compiled step
    targets_BT: Any  # int32
    weights_BT: Any  # float32: how much each target counts in the loss
    segments_BT: Any  # int32, or None: attention stays within a segment


class Batches:
    """The batches of a folder of shards.

    Shards of documents are cut every `sequence_length` tokens, and each row reads one more token as its last target.
    Shards of conversations, which have marks, keep the rows of `sequence_length + 1` that they were packed into.
    """

    def __init__(self, folder: Path, *, batch_size: int, sequence_length: int, seed: int, isolate: int | None = None):
        """`isolate` is the end-of-text token, if attention must not cross from one document into the next.

        Raises KodaError where there is not one row.
        """
        self.shards = Shards(folder)
        self.batch_size, self.sequence_length, self.seed, self.isolate = batch_size, sequence_length, seed, isolate
        self.stride = sequence_length + (self.shards.marks is not None)
        self.rows = (len(self.shards) - (self.stride == sequence_length)) // self.stride
        if self.rows < 1:
            raise KodaError(
                f"{folder} has {len(self.shards)} tokens, too few for one row of {sequence_length + 1}. Use more text, "
                "or a smaller model.max_position_embeddings."
            )

    def __getitem__(self, step: int) -> Batch:
        return self.part(step, slice(0, self.batch_size))

    def part(self, step: int, rows: slice) -> Batch:
        """Some rows of a step's batch, for one of several processes."""
        positions = step * self.batch_size + np.arange(rows.start, rows.stop)
        return self.take(row_at(positions, self.rows, self.seed))

    def take(self, rows: np.ndarray) -> Batch:
        """The rows with these numbers, counted in the order of the shards."""
        pieces = [self.shards.read(int(row) * self.stride, self.sequence_length + 1) for row in rows]
        tokens_BS = np.stack([tokens for tokens, _ in pieces])
        if (largest := int(tokens_BS.max())) >= self.shards.manifest["vocab_size"]:
            raise KodaError(f"a shard contains token {largest}, outside the vocabulary. Run the tokenize stage again.")
        inputs_BT, targets_BT = tokens_BS[:, :-1], tokens_BS[:, 1:]
        segments_BT = None
        if self.shards.marks is None:
            weights_BT = np.ones(targets_BT.shape, np.float32)
            if self.isolate is not None:
                segments_BT = np.cumsum(inputs_BT == self.isolate, axis=1) - (inputs_BT == self.isolate)
        else:
            marks_BS = np.stack([marks for _, marks in pieces if marks is not None])
            weights_BT = (marks_BS[:, 1:] & TRAINED).astype(np.float32)
            segments_BT = np.cumsum((marks_BS[:, :-1] & STARTS) > 0, axis=1)
        return Batch(inputs_BT, targets_BT, weights_BT, None if segments_BT is None else segments_BT.astype(np.int32))

    def fingerprint(self) -> str:
        """A hash that two runs share only if they read the same batches; checkpoints store it."""
        facts = f"{self.shards.fingerprint()} {self.sequence_length} {self.batch_size} {self.seed} {self.isolate}"
        return hashlib.sha256(facts.encode()).hexdigest()[:32]
