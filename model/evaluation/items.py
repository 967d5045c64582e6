"""A question with its choices, and what a model is asked to score for it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

Encode = Callable[[Sequence[str]], list[list[int]]]  # texts → token ids, as the model's own tokenizer gives them


class Item(NamedTuple):
    """After which context is which continuation right? The two lists are as long as there are choices.

    An item with one choice is right where every token of it is the likeliest one.
    """

    contexts: list[str]
    continuations: list[str]
    gold: int
    chance: float
    lengths: list[int] | None = None  # characters that a choice's log-likelihood is divided by for acc_norm


def requests(encode: Encode, prefix: int, items: Sequence[Item]) -> list[tuple[list[int], list[int]]]:
    """Token ids of each context and continuation, cut where lm-evaluation-harness cuts them.

    Spaces at the end of a context go to the continuation, and the two are encoded in one piece, so that words keep the
    tokens they have in running text. An empty context is the token `prefix`.
    """
    pairs = [pair for item in items for pair in zip(item.contexts, item.continuations, strict=True)]
    moved = []
    for context, continuation in pairs:
        bare = context.rstrip()
        moved.append((bare, context[len(bare) :] + continuation))
    wholes = encode([context + continuation for context, continuation in moved])
    contexts = encode([context for context, _ in moved])
    found = []
    for (context, _), whole, ids in zip(moved, wholes, contexts, strict=True):
        if context:
            found.append((ids, whole[len(ids) :]))
        else:  # the prefix stands for it, unless the text begins with it anyway
            found.append((whole[:1], whole[1:]) if whole[0] == prefix else ([prefix], whole))
    return found
