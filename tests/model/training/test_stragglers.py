import numpy as np
import pytest

from model.training.stragglers import slow


@pytest.mark.parametrize(
    ("times", "causes"),
    [
        ([[0.010, 0.0], [0.014, 0.9]], ["", ""]),
        ([[0.010, 0.0], [0.031, 0.0]], ["", "computes 3.1 times as slowly as the fastest"]),
        ([[0.02, 0.0], [0.01, 0.0], [0.01, 0.0]], ["computes 2.0 times as slowly as the fastest", "", ""]),
        ([[0.010, 2.0], [0.010, 40.0]], ["", "waited 40 s for its data, another one 2 s"]),
        ([[0.010, 40.0], [0.010, 41.0]], ["", ""]),
    ],
)
def test_slow_process_is_told_with_what_slows_it(times: list[list[float]], causes: list[str]) -> None:
    assert slow(np.array(times)) == dict(enumerate(causes))
