"""Is a model worse than it was? The same held-out documents and the same items, asked of both."""

from typing import Any, NamedTuple

import numpy as np

from model.evaluation.figures import paired, quote

LEVEL = 1e-3  # how often luck may make one comparison of a night, or more of them, look like a regression
MARGIN = 0.01  # of bits per byte: a training on its plateau wanders by less from save to save, and not by luck alone


class Compared(NamedTuple):
    """One figure of two models."""

    measure: str
    before: float
    now: float
    p: float  # how often luck alone would part them so far
    worse: bool


def compare(before: dict[str, Any], now: dict[str, Any]) -> list[Compared]:
    """Two records of `suite.measure` on the same text and items, figure by figure.

    Bits per byte are compared document by document (paired t-test), tasks item by item (exact McNemar test), each at
    its share of LEVEL (Bonferroni): so many comparisons each night, and the level is that of the night.
    """
    from scipy.stats import ttest_rel  # slow to import, and seldom needed

    tasks = [(suite, name) for suite, named in now["right"].items() for name in named if now["right"][suite][name]]
    level = LEVEL / (1 + len(tasks))
    old, new = (np.array(record["documents"], float) for record in (before, now))
    p = float(ttest_rel(new[:, 0], old[:, 0], alternative="greater").pvalue)
    was, is_ = (record["figures"]["bits_per_byte"] for record in (before, now))
    found = [Compared("bits per byte", was, is_, 1.0 if np.isnan(p) else p, p < level and is_ > was * (1 + MARGIN))]
    for suite, name in tasks:
        pair = paired(before["right"][suite][name], now["right"][suite][name])
        a, b = (quote(record["figures"]["tasks" if suite == "homemade" else suite][name]) for record in (before, now))
        found.append(Compared(f"{name}, accuracy", a, b, pair.p, pair.difference < 0 and pair.p < level))
    return found
