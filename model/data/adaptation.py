"""What a model reads while it gets used to a longer context: long documents, and conversations so that it goes on
answering."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from model.data import tokenizer as tokenizers
from model.data.chat import Tokens
from model.data.packing import Rows
from model.data.shards import STARTS, TRAINED, Shards
from model.errors import KodaError


def build(
    out: str, tokens: str, conversations: str, old_context: int, context: int, rows: int, chat_share: float
) -> dict[str, int]:
    """Write rows of `context + 1` tokens to `out`: about `rows` of them, `chat_share` of these conversations.

    The rest is cut from training documents longer than `old_context`, in their order. Raises KodaError where there is
    no such document.
    """
    learned = tokenizers.load(str(Path(tokens) / "tokenizer.json"))
    end = tokenizers.end_of_text(learned)
    writer = Rows(Path(out), learned.get_vocab_size(), context, end)
    documents = long = 0
    held = np.empty(0, np.int32)
    for document in _long_documents(Shards(Path(tokens) / "train"), old_context, end):
        documents, held = documents + 1, np.concatenate([held, document])
        while len(held) > context and long < rows * (1 - chat_share):
            row, held, long = held[: context + 1], held[context + 1 :], long + 1
            writer.add(Tokens(row.tolist(), [True] * len(row)))
        if long >= rows * (1 - chat_share):
            break
    if not long:
        raise KodaError(
            f"extend.steps: the training text has {documents} document(s) longer than {old_context} tokens, too few "
            f"for one row of {context + 1}. extend.steps=0 changes the positions and not the weights."
        )
    for conversation in _conversations(Shards(Path(conversations) / "train")):
        if writer.rows >= long / (1 - chat_share):
            break
        writer.add(conversation)
    writer.close()
    return {"long_documents": documents, "long_rows": long, "chat_rows": writer.rows - long}


def _long_documents(shards: Shards, longer_than: int, end: int) -> Iterator[np.ndarray]:
    """The documents of more tokens than that which end in the shard they begin in."""
    for tokens, starts in zip(shards.tokens, shards.documents(), strict=True):
        for start, stop in pairwise(starts):
            if stop - start > longer_than and tokens[stop - 1] == end:
                yield tokens[start:stop].astype(np.int32)


def _conversations(shards: Shards) -> Iterator[Tokens]:
    """The conversations in packed rows, without what fills the rows up."""
    assert shards.marks is not None
    for tokens, marks in zip(shards.tokens, shards.marks, strict=True):
        edges = [*np.flatnonzero(marks & STARTS), len(tokens)]
        for start, stop in pairwise(edges):
            trained = marks[start:stop] & TRAINED > 0
            if trained.any():
                yield Tokens(tokens[start:stop].tolist(), trained.tolist())
