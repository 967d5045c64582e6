"""Rows to adapt a model to a longer context: long documents, and conversations so that it keeps answering."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from model.data import tokenizer as tokenizers
from model.data.chat import Tokens
from model.data.order import row_at
from model.data.packing import Rows
from model.data.shards import STARTS, TRAINED, Shards
from model.errors import KodaError
from model.figures import AdaptationFigures


def build(
    out: str, tokens: str, conversations: str, old_context: int, context: int, rows: int, chat_share: float
) -> AdaptationFigures:
    """Write about `rows` rows of `context + 1` tokens to `out`, a `chat_share` of them conversations.

    The others are cut from training documents longer than `old_context`, drawn from the whole text. Raises KodaError
    where these are too few for one row.
    """
    vocabulary = tokenizers.load(str(Path(tokens) / "tokenizer.json"))
    end = vocabulary.end
    writer = Rows(Path(out), vocabulary.size, context, end)
    documents = long = 0
    pending = np.empty(0, np.int32)
    for document in _long_documents(Shards(Path(tokens) / "train"), old_context, end):
        documents, pending = documents + 1, np.concatenate([pending, document])
        while len(pending) > context and long < rows * (1 - chat_share):
            row, pending, long = pending[: context + 1], pending[context + 1 :], long + 1
            writer.add(Tokens(row.tolist(), [True] * len(row)))
        if long >= rows * (1 - chat_share):
            break
    if not long:
        raise KodaError(
            f"extend.steps: the training text has {documents} document(s) longer than {old_context} tokens, too few "
            f"for one row of {context + 1}. With extend.steps=0, the positions change and the weights do not."
        )
    for conversation in _conversations(Shards(Path(conversations) / "train")):
        if writer.rows >= long / (1 - chat_share):
            break
        writer.add(conversation)
    writer.close()
    return AdaptationFigures(long_documents=documents, long_rows=long, chat_rows=writer.rows - long)


def _long_documents(shards: Shards, longer_than: int, end: int) -> Iterator[np.ndarray]:
    """The documents of more than `longer_than` tokens that are in one shard from beginning to end, in an order in which
    the first of them are from all over the text: few are needed, and a corpus lies source by source."""
    spans = []
    for number, (tokens, starts) in enumerate(zip(shards.tokens, shards.documents(), strict=True)):
        long = np.flatnonzero(np.diff(starts) > longer_than)
        whole = long[tokens[starts[long + 1] - 1] == end]
        spans.append(np.stack([np.full(len(whole), number), starts[whole], starts[whole + 1]], axis=1))
    documents = np.concatenate(spans)
    for row in row_at(np.arange(len(documents)), len(documents), seed=0) if len(documents) else []:
        number, start, stop = documents[row]
        yield shards.tokens[number][start:stop].astype(np.int32)


def _conversations(shards: Shards) -> Iterator[Tokens]:
    """The conversations in packed rows, without the padding and the rows of text, of which everything is trained."""
    assert shards.marks is not None
    for tokens, marks in zip(shards.tokens, shards.marks, strict=True):
        edges = [*np.flatnonzero(marks & STARTS), len(tokens)]
        for start, stop in pairwise(edges):
            trained = marks[start:stop] & TRAINED > 0
            if trained.any() and not trained.all():
                yield Tokens(tokens[start:stop].tolist(), trained.tolist())
