"""Whether a model is worse than an earlier one, on the same held-out documents and the same items."""

from typing import NamedTuple

import numpy as np

from model.evaluation.figures import paired
from model.figures import Measurement

LEVEL = 1e-3  # family-wise error rate of a night: the probability of one or more false regressions
MARGIN = 0.01  # of bits per byte: from save to save, a training on its plateau moves by less, and significantly so


class Compared(NamedTuple):
    """One figure of two models."""

    measure: str
    before: float
    now: float
    p: float  # p-value: one-sided for bits per byte, two-sided for accuracies
    worse: bool


def compare(before: Measurement, now: Measurement) -> list[Compared]:
    """Two measurements on the same text and items, figure by figure.

    Bits per byte are compared document by document (paired t-test), tasks item by item (exact McNemar test), each at
    its share of LEVEL (Bonferroni), so that LEVEL is the family-wise error rate of one night.
    """
    from scipy.stats import ttest_rel  # slow to import, and seldom needed

    tasks = [(suite, name) for suite, named in now.right.items() for name in named if now.right[suite][name]]
    level = LEVEL / (1 + len(tasks))
    old, new = (np.array(measurement.documents, float) for measurement in (before, now))
    p = float(ttest_rel(new[:, 0], old[:, 0], alternative="greater").pvalue)
    was, is_ = before.figures.bits_per_byte, now.figures.bits_per_byte
    compared = [Compared("bits per byte", was, is_, 1.0 if np.isnan(p) else p, p < level and is_ > was * (1 + MARGIN))]
    for suite, name in tasks:
        pair = paired(before.right[suite][name], now.right[suite][name])
        field = "tasks" if suite == "homemade" else suite
        a, b = (getattr(measurement.figures, field)[name].quoted for measurement in (before, now))
        compared.append(Compared(f"{name}, accuracy", a, b, pair.p, pair.difference < 0 and pair.p < level))
    return compared
