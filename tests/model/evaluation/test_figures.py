import numpy as np
import pytest

from model.evaluation.figures import calibration_error, mark, paired
from model.evaluation.items import Item, requests
from model.evaluation.score import Score


def item(count: int, gold: int, lengths: list[int] | None = None) -> Item:
    return Item(["c"] * count, ["x"] * count, gold, 1 / count, lengths)


def test_acc_and_acc_norm_are_defined_as_in_the_harness() -> None:
    """Choice 1 is the likeliest, choice 0 the likeliest per character."""
    scores = [Score(-6.0, False, 3), Score(-5.0, False, 1), Score(-9.0, False, 2)]
    figures = mark([item(3, 0, [30, 5, 30])], scores).figures
    assert (figures.acc, figures.acc_norm, figures.perplexity) == (0.0, 1.0, None)
    plain = mark([item(3, 1)], scores)
    assert plain.figures.acc == 1.0 and plain.figures.acc_norm is None and plain.right == [True]


def test_an_item_without_choices_is_right_where_its_score_is_greedy() -> None:
    figures = mark([item(1, 0), item(1, 0)], [Score(-1.0, True, 2), Score(-3.0, False, 1)]).figures
    assert figures.acc == 0.5 and figures.perplexity == pytest.approx(np.exp(2.0), abs=1e-3)


def test_confidence_equal_to_accuracy_has_no_calibration_error() -> None:
    draw = np.random.default_rng(0)
    confidence = draw.uniform(0, 1, 20_000)
    calibrated = calibration_error(confidence, (draw.uniform(0, 1, 20_000) < confidence).tolist())
    overconfident = calibration_error(confidence, (draw.uniform(0, 1, 20_000) < confidence / 2).tolist())
    assert calibrated < 0.02
    assert overconfident == pytest.approx(0.25, abs=0.02)  # the mean of half of a uniform number


def test_the_paired_test_detects_a_loss_within_the_error_of_two_accuracies() -> None:
    """40 of 1000 items are lost and none won. Unpaired, 0.50 and 0.46 are 1.8 standard errors apart."""
    first = [True] * 500 + [False] * 500
    second = [False] * 40 + first[40:]
    lost = paired(first, second)
    assert lost.difference == pytest.approx(-0.04) and lost.p < 1e-9 and lost.n == 1000
    assert paired(first, first) == (0.0, 0.0, 1.0, 1000)


def test_the_paired_test_keeps_its_false_positive_rate() -> None:
    """Two models at chance: in 400 comparisons, p < 0.05 in at most 5 % of them plus five standard errors."""
    draw = np.random.default_rng(0)
    p_values = [paired(*(draw.integers(0, 2, (2, 100)) > 0).tolist()).p for _ in range(400)]
    assert np.mean(np.array(p_values) < 0.05) < 0.05 + 5 * (0.05 * 0.95 / 400) ** 0.5


def test_contexts_and_continuations_are_divided_as_in_the_harness() -> None:
    """Spaces at the end of a context move to the continuation; an empty context is the prefix."""

    def encode(texts: list[str]) -> list[list[int]]:
        return [[ord(letter) for letter in text] for text in texts]

    pairs = [
        Item([context], [more], 0, 0.0) for context, more in (("ab  ", "c"), ("", "xy"), ("", "\x00z"), ("a", " b"))
    ]
    assert requests(encode, 0, pairs) == [
        ([97, 98], [32, 32, 99]),
        ([0], [120, 121]),
        ([0], [122]),
        ([97], [32, 98]),
    ]
