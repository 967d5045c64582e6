from dataclasses import replace

import numpy as np

from model.evaluation.regression import LEVEL, compare
from model.figures import Measurement, SuiteFigures, TaskFigures

TASKS = ("ending", "word", "order")


def night(draw: np.random.Generator, bits: np.ndarray, right: dict[str, np.ndarray], flips: float) -> Measurement:
    """The measurement of a model that is as good as that of `bits` and `right`, with random differences.

    The bits of each document vary by 2 %. A share `flips` of the items is drawn again, at the task's accuracy.
    """
    noise = draw.normal(0, 0.02, len(bits))
    now = {name: np.where(draw.random(len(r)) < flips, draw.random(len(r)) < r.mean(), r) for name, r in right.items()}
    documents = np.stack([bits * (1 + noise), np.full(len(bits), 1000.0)], axis=1)
    return Measurement(
        SuiteFigures(
            bits_per_byte=float(documents[:, 0].sum() / documents[:, 1].sum()),
            tasks={name: TaskFigures(acc=float(r.mean())) for name, r in now.items()},
        ),
        {"homemade": {name: r.tolist() for name, r in now.items()}},
        documents.tolist(),
    )


def test_equally_good_models_are_flagged_no_more_often_than_the_level() -> None:
    """In 500 nights, half a false regression is expected; 5 or more have a probability of 1 in 5,000."""
    draw = np.random.default_rng(0)
    bits = draw.uniform(500, 3000, 120)
    right = {name: draw.random(200) < 0.6 for name in TASKS}
    nights = (compare(night(draw, bits, right, 0.3), night(draw, bits, right, 0.3)) for _ in range(500))
    flagged = sum(any(row.worse for row in rows) for rows in nights)
    assert flagged <= 4, (flagged, LEVEL)


def test_only_the_figures_that_became_worse_are_flagged() -> None:
    draw = np.random.default_rng(1)
    bits = draw.uniform(500, 3000, 120)
    right = {name: draw.random(200) < 0.6 for name in TASKS}
    before, now = night(draw, bits, right, 0.0), night(draw, bits * 1.03, right, 0.0)
    lost = np.array(now.right["homemade"]["order"]) & (draw.random(200) < 0.7)
    now.right["homemade"]["order"] = lost.tolist()
    assert [row.measure for row in compare(before, now) if row.worse] == ["bits per byte", "order, accuracy"]
    assert not any(row.worse for row in compare(now, before))  # better is not worse


def test_a_significant_change_below_the_margin_is_not_a_regression() -> None:
    draw = np.random.default_rng(2)
    bits = draw.uniform(500, 3000, 120)
    before = night(draw, bits, {}, 0)
    documents = [[b * 1.005, size] for b, size in before.documents]
    figures = replace(before.figures, bits_per_byte=before.figures.bits_per_byte * 1.005)
    (row,) = compare(before, Measurement(figures, before.right, documents))
    assert row.p < 1e-9 and not row.worse
