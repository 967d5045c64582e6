"""What needs no model: how far does one get by the length of a choice alone, or by how frequent its tokens are?"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from model.data import tokenizer as tokenizers
from model.data.shards import Shards
from model.evaluation.items import Item

SAMPLE = 5_000_000  # tokens of the training text that frequencies are counted on


class Unigram:
    """The log-probability of a text under the shares that its tokens have in a run's training text, nats."""

    def __init__(self, tokens: Path):
        """`tokens` is what the tokenize stage made."""
        self.tokenizer = tokenizers.load(str(tokens / "tokenizer.json"))
        shards = Shards(tokens / "train")
        read = shards.read(0, min(SAMPLE, len(shards)))[0]
        counts = np.bincount(read, minlength=self.tokenizer.get_vocab_size()) + 1.0
        self.logprobs_V = np.log(counts / counts.sum())
        self.cached = lru_cache(1 << 18)(self._cost)

    def __call__(self, text: str) -> float:
        return self.cached(text)

    def _cost(self, text: str) -> float:
        return float(self.logprobs_V[tokenizers.encode_plain(self.tokenizer, [text])[0]].sum())


def baselines(items: Sequence[Item], unigram: Unigram) -> dict[str, float | None]:
    """Accuracy of the longest choice, and of the one whose tokens are the most frequent; among equals, what luck gives.

    None for a task without choices.
    """
    chosen = [item for item in items if len(item.contexts) > 1]
    if not chosen:
        return {"longest": None, "unigram": None}
    found = {"longest": 0.0, "unigram": 0.0}
    for item in chosen:
        whole = ["".join(pair) for pair in zip(item.contexts, item.continuations, strict=True)]
        asked = (
            item.continuations if len(set(item.contexts)) == 1 else whole
        )  # names are put into WinoGrande's contexts
        for name, values in (("longest", map(len, whole)), ("unigram", map(unigram, asked))):
            mine = np.array(list(values), float)
            best = mine >= mine.max() - 1e-9
            found[name] += float(best[item.gold] / best.sum() / len(chosen))
    return {name: round(share, 4) for name, share in found.items()}
