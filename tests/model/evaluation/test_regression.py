import numpy as np

from model.evaluation.regression import LEVEL, compare

TASKS = ("ending", "word", "order")


def night(draw: np.random.Generator, bits: np.ndarray, right: dict[str, np.ndarray], flips: float) -> dict:
    """A record of a model that is as good as another, and needs not the same bits nor wins the same items."""
    noise = draw.normal(0, 0.02, len(bits))
    now = {name: np.where(draw.random(len(r)) < flips, draw.random(len(r)) < r.mean(), r) for name, r in right.items()}
    documents = np.stack([bits * (1 + noise), np.full(len(bits), 1000.0)], axis=1)
    return {
        "figures": {
            "bits_per_byte": float(documents[:, 0].sum() / documents[:, 1].sum()),
            "tasks": {name: {"acc": float(r.mean()), "acc_norm": None} for name, r in now.items()},
        },
        "right": {"homemade": {name: r.tolist() for name, r in now.items()}},
        "documents": documents.tolist(),
    }


def test_models_that_are_equally_good_are_seldom_told_apart() -> None:
    """Not more often in 500 nights than the level says: half a one is expected, 5 have a chance of 1 in 5,000."""
    draw = np.random.default_rng(0)
    bits = draw.uniform(500, 3000, 120)
    right = {name: draw.random(200) < 0.6 for name in TASKS}
    nights = (compare(night(draw, bits, right, 0.3), night(draw, bits, right, 0.3)) for _ in range(500))
    flagged = sum(any(row.worse for row in rows) for rows in nights)
    assert flagged <= 4, (flagged, LEVEL)


def test_what_is_worse_is_named_and_what_is_not_is_not() -> None:
    draw = np.random.default_rng(1)
    bits = draw.uniform(500, 3000, 120)
    right = {name: draw.random(200) < 0.6 for name in TASKS}
    before, now = night(draw, bits, right, 0.0), night(draw, bits * 1.03, right, 0.0)
    lost = np.array(now["right"]["homemade"]["order"]) & (draw.random(200) < 0.7)
    now["right"]["homemade"]["order"] = lost.tolist()
    assert [row.measure for row in compare(before, now) if row.worse] == ["bits per byte", "order, accuracy"]
    assert not any(row.worse for row in compare(now, before))  # better is not worse


def test_less_than_a_training_wanders_is_no_regression_however_sure_it_is() -> None:
    draw = np.random.default_rng(2)
    bits = draw.uniform(500, 3000, 120)
    before, now = night(draw, bits, {}, 0), night(draw, bits, {}, 0)
    now["documents"] = [[b * 1.005, size] for b, size in before["documents"]]
    now["figures"]["bits_per_byte"] = before["figures"]["bits_per_byte"] * 1.005
    (row,) = compare(before, now)
    assert row.p < 1e-9 and not row.worse
