import random

from model.training.numbers import BAD_STEPS, ENOUGH, Judge


def test_numbers_that_are_not_finite_are_counted_in_a_row() -> None:
    judge = Judge(0.0)
    for _ in range(BAD_STEPS - 1):
        assert judge(float("nan"), False) == "loss or gradient is not finite"
    assert judge.in_a_row == BAD_STEPS - 1
    assert judge(3.0, True) == "" and judge.in_a_row == 0


def test_a_spike_is_judged_by_the_losses_before_it() -> None:
    """Losses of 3 ± 0.1: four is ten deviations off, and stays so however long the spike lasts."""
    judge, noise = Judge(6.0), random.Random(0)
    losses = [noise.gauss(3.0, 0.1) for _ in range(ENOUGH)]
    assert not any(judge(loss, True) for loss in losses)
    for count in range(1, BAD_STEPS + 1):
        assert "deviations above" in judge(4.0, True) and judge.in_a_row == count
    assert judge(2.0, True) == "" and judge.in_a_row == 0  # lower is never bad


def test_without_deviations_a_finite_loss_is_good() -> None:
    judge = Judge(0.0)
    assert not any(judge(loss, True) for loss in [1.0] * 200 + [1e6])
