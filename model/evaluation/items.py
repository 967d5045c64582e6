"""A question with its choices, and the requests to a scorer that it becomes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

Encode = Callable[[Sequence[str]], list[list[int]]]  # texts → token ids, by the model's own tokenizer


class Item(NamedTuple):
    """A question: one context and one continuation for each choice; `gold` is the index of the right choice.

    An item with one choice is right where each of its tokens is the likeliest one.
    """

    contexts: list[str]
    continuations: list[str]
    gold: int
    chance: float
    lengths: list[int] | None = None  # characters that a choice's log-likelihood is divided by for acc_norm


def requests(encode: Encode, prefix: int, items: Sequence[Item]) -> list[tuple[list[int], list[int]]]:
    """Token ids of each context and continuation, divided where lm-evaluation-harness divides them.

    Spaces at the end of a context move to the continuation, and the two are encoded as one text, so that words keep
    the tokens that they have in running text. An empty context is the token `prefix`.
    """
    pairs = [pair for item in items for pair in zip(item.contexts, item.continuations, strict=True)]
    moved = []
    for context, continuation in pairs:
        bare = context.rstrip()
        moved.append((bare, context[len(bare) :] + continuation))
    wholes = encode([context + continuation for context, continuation in moved])
    contexts = encode([context for context, _ in moved])
    encoded = []
    for (context, _), whole, ids in zip(moved, wholes, contexts, strict=True):
        if context:
            encoded.append((ids, whole[len(ids) :]))
        else:  # a tokenizer may begin every text with the prefix itself
            encoded.append((whole[:1], whole[1:]) if whole[0] == prefix else ([prefix], whole))
    return encoded
