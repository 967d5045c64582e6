"""From log-likelihoods to figures: accuracies and their errors, calibration, and comparisons of two models."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from model.evaluation.items import Item
from model.figures import TaskFigures

if TYPE_CHECKING:  # a flow's process reads these figures, and must not wait for JAX
    from model.evaluation.score import Score

BINS = 10  # of confidence
ABOVE = 2.0  # standard errors above chance that count


class Marked(NamedTuple):
    """The figures of one task, and which items were right by its quoted metric."""

    figures: TaskFigures
    right: list[bool]


def mark(items: Sequence[Item], scores: Sequence["Score"]) -> Marked:
    """Accuracy over the items of one task, `scores` being those of all their choices in order.

    acc: the likeliest continuation is the answer; acc_norm: the likeliest for each character of it; both as in
    lm-evaluation-harness. stderr is the standard error of the quoted one, which is acc_norm where there is one.
    """
    if not items:
        return Marked(TaskFigures(), [])
    remaining, plain, normed, confidences = iter(scores), [], [], []
    for item in items:
        mine = [next(remaining) for _ in item.contexts]
        logprobs = np.array([score.logprob for score in mine])
        if len(mine) == 1:
            plain.append(mine[0].greedy)
            continue
        plain.append(int(logprobs.argmax()) == item.gold)
        confidences.append(float(np.exp(logprobs.max() - np.logaddexp.reduce(logprobs))))
        if item.lengths is not None:
            normed.append(int((logprobs / np.array(item.lengths)).argmax()) == item.gold)
    right = normed or plain
    accuracy, chance = float(np.mean(right)), float(np.mean([item.chance for item in items]))
    single = not confidences
    figures = TaskFigures(
        n=len(items),
        acc=round(float(np.mean(plain)), 4),
        acc_norm=round(float(np.mean(normed)), 4) if normed else None,
        stderr=round(standard_error(right), 4),
        perplexity=_perplexity(scores) if single else None,
        chance=round(chance, 4),
        calibration_error=None if single else round(calibration_error(confidences, plain), 4),
        above_chance=accuracy - chance > ABOVE * math.sqrt(max(_variance(accuracy), _variance(chance)) / len(items)),
    )
    return Marked(figures, right)


def standard_error(right: Sequence[bool]) -> float:
    """Of the mean, from the sample's own variance."""
    return float(np.std(right, ddof=1) / math.sqrt(len(right))) if len(right) > 1 else 0.0


def _variance(share: float) -> float:
    return share * (1 - share)


def _perplexity(scores: Sequence["Score"]) -> float:
    """Of whole continuations, as LAMBADA's is given."""
    return round(math.exp(-float(np.mean([score.logprob for score in scores]))), 4)


def calibration_error(confidences: Sequence[float], right: Sequence[bool]) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599): how far the confidence in the chosen answer is
    from the share that is right, over ten bins of confidence."""
    bins = np.minimum((np.array(confidences) * BINS).astype(int), BINS - 1)
    sure, correct = np.array(confidences), np.array(right, float)
    gaps = [abs(sure[bins == b].mean() - correct[bins == b].mean()) * (bins == b).mean() for b in set(bins.tolist())]
    return float(sum(gaps))


def average(tasks: Mapping[str, TaskFigures]) -> float | None:
    """Mean of the quoted metric over the tasks with choices, as it is published; LAMBADA has none and is left out."""
    quoted = [figures.quoted for figures in tasks.values() if figures.n and figures.perplexity is None]
    return round(float(np.mean(quoted)), 4) if quoted else None


class Paired(NamedTuple):
    """Two models on the same items."""

    difference: float  # of the accuracies: the second's less the first's
    stderr: float
    p: float  # two-sided p-value (exact McNemar test)
    n: int


def paired(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """Compare two models on the same items: only items that one of them alone got right count."""
    from scipy.stats import binomtest  # slow to import, and seldom needed

    a, b = np.array(first, float), np.array(second, float)
    won, lost = int(((b - a) > 0).sum()), int(((b - a) < 0).sum())
    p = binomtest(won, won + lost).pvalue if won + lost else 1.0
    return Paired(float((b - a).mean()), standard_error((b - a).tolist()), float(p), len(a))
