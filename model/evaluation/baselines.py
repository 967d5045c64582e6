"""Baselines without a model: the accuracy of choosing by length alone, or by how frequent the tokens are.

Letters in names: V vocabulary.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from model.data import tokenizer as tokenizers
from model.data.shards import Shards
from model.evaluation.items import Item

SAMPLE = 5_000_000  # tokens of the training text that frequencies are counted on


class Unigram:
    """The log-probability of a text, in nats, under the frequencies of its tokens in a run's training text."""

    def __init__(self, tokens: Path):
        """`tokens` is the folder of the tokenize stage."""
        self.vocabulary = tokenizers.load(str(tokens / "tokenizer.json"))
        shards = Shards(tokens / "train")
        sample = shards.read(0, min(SAMPLE, len(shards)))[0]
        counts = np.bincount(sample, minlength=self.vocabulary.size) + 1.0
        self.logprobs_V = np.log(counts / counts.sum())
        self.cached = lru_cache(1 << 18)(self._logprob)

    def __call__(self, text: str) -> float:
        return self.cached(text)

    def _logprob(self, text: str) -> float:
        return float(self.logprobs_V[self.vocabulary.plain(text)].sum())


def baselines(items: Sequence[Item], unigram: Unigram) -> dict[str, float | None]:
    """Accuracy of the longest choice, and of the choice whose tokens are the most frequent.

    A tie counts as a random choice among the tied. None for a task without choices.
    """
    questions = [item for item in items if len(item.contexts) > 1]
    if not questions:
        return {"longest": None, "unigram": None}
    accuracies = {"longest": 0.0, "unigram": 0.0}
    for item in questions:
        whole = ["".join(pair) for pair in zip(item.contexts, item.continuations, strict=True)]
        # WinoGrande's choices are in the contexts: there the frequency is that of the whole.
        texts = item.continuations if len(set(item.contexts)) == 1 else whole
        for name, values in (("longest", map(len, whole)), ("unigram", map(unigram, texts))):
            measures = np.array(list(values), float)
            best = measures >= measures.max() - 1e-9
            accuracies[name] += float(best[item.gold] / best.sum() / len(questions))
    return {name: round(accuracy, 4) for name, accuracy in accuracies.items()}
