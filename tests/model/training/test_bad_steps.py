import random

from model.training.bad_steps import BAD_STEPS, ENOUGH, BadStepDetector


def test_steps_that_are_not_finite_are_counted_in_a_row() -> None:
    detector = BadStepDetector(0.0)
    for _ in range(BAD_STEPS - 1):
        assert detector(float("nan"), False)
    assert detector.in_a_row == BAD_STEPS - 1
    assert detector(3.0, True) == "" and detector.in_a_row == 0


def test_spike_is_a_loss_far_above_those_before_it() -> None:
    """Losses of 3 ± 0.1: 4 is ten deviations above them, however long the spike lasts."""
    detector, noise = BadStepDetector(6.0), random.Random(0)
    losses = [noise.gauss(3.0, 0.1) for _ in range(ENOUGH)]
    assert not any(detector(loss, True) for loss in losses)
    for count in range(1, BAD_STEPS + 1):
        assert detector(4.0, True) and detector.in_a_row == count
    assert detector(2.0, True) == "" and detector.in_a_row == 0  # lower is never bad


def test_without_deviations_every_finite_loss_is_good() -> None:
    detector = BadStepDetector(0.0)
    assert not any(detector(loss, True) for loss in [1.0] * 200 + [1e6])
