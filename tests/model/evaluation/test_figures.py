import numpy as np
import pytest

from model.evaluation.figures import calibration_error, mark, paired
from model.evaluation.items import Item, requests
from model.evaluation.score import Score


def item(count: int, gold: int, lengths: list[int] | None = None) -> Item:
    return Item(["c"] * count, ["x"] * count, gold, 1 / count, lengths)


def test_acc_and_acc_norm_are_what_the_harness_means_by_them() -> None:
    """Choice 1 is the likeliest, choice 0 the likeliest for each of its characters."""
    scores = [Score(-6.0, False, 3), Score(-5.0, False, 1), Score(-9.0, False, 2)]
    figures = mark([item(3, 0, [30, 5, 30])], scores).figures
    assert (figures["acc"], figures["acc_norm"], figures["perplexity"]) == (0.0, 1.0, None)
    plain = mark([item(3, 1)], scores)
    assert plain.figures["acc"] == 1.0 and plain.figures["acc_norm"] is None and plain.right == [True]


def test_an_item_without_choices_is_right_where_it_is_said_greedily() -> None:
    figures = mark([item(1, 0), item(1, 0)], [Score(-1.0, True, 2), Score(-3.0, False, 1)]).figures
    assert figures["acc"] == 0.5 and figures["perplexity"] == pytest.approx(np.exp(2.0), abs=1e-3)


def test_a_model_that_is_as_sure_as_it_is_right_has_no_calibration_error() -> None:
    draw = np.random.default_rng(0)
    sure = draw.uniform(0, 1, 20_000)
    honest = calibration_error(sure, (draw.uniform(0, 1, 20_000) < sure).tolist())
    boastful = calibration_error(sure, (draw.uniform(0, 1, 20_000) < sure / 2).tolist())
    assert honest < 0.02 and boastful == pytest.approx(0.25, abs=0.02)  # the mean of half of a uniform number


def test_the_paired_test_sees_what_two_accuracies_do_not() -> None:
    """Forty items lost and none won, of a thousand: far from luck, though two accuracies hide it."""
    first = [True] * 500 + [False] * 500
    second = [False] * 40 + first[40:]
    lost = paired(first, second)
    assert lost.difference == pytest.approx(-0.04) and lost.p < 1e-9 and lost.n == 1000
    assert paired(first, first) == (0.0, 0.0, 1.0, 1000)


def test_luck_is_called_luck_as_often_as_the_test_says() -> None:
    """Two models that are right by chance: p below 0.05 in at most that share of 400 comparisons, five errors aside."""
    draw = np.random.default_rng(0)
    found = [paired(*(draw.integers(0, 2, (2, 100)) > 0).tolist()).p for _ in range(400)]
    assert np.mean(np.array(found) < 0.05) < 0.05 + 5 * (0.05 * 0.95 / 400) ** 0.5


def test_texts_are_cut_where_the_harness_cuts_them() -> None:
    """Spaces at the end of a context go to the continuation; an empty context is the prefix."""

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
