import time
from pathlib import Path

import pytest

from model.training import goodput
from model.training.heartbeat import Heartbeat
from model.training.records import Event, log_event


def log_attempt(folder: Path, began: float, first: int | None, last: int, **seconds: float) -> None:
    """Log how an attempt, from step `first` to step `last`, used its time."""
    log_event(folder, Event.SPENT, last, began=began, first_step=first, seconds=seconds)


def test_parts_add_up_and_lost_steps_are_rework(tmp_path: Path) -> None:
    """An attempt of 60 s reaches step 100; ten seconds later the next begins at 75: a quarter of the work was lost."""
    log_attempt(tmp_path, 1000.0, 0, 100, start=5, compile=5, train=40, data=4, save=2, evaluate=4)
    log_attempt(tmp_path, 1064.0, None, 0, start=4)  # one that died before it knew where it was
    log_attempt(tmp_path, 1070.0, 75, 200, start=2, compile=1, train=50)
    spent = goodput.goodput(tmp_path)
    assert spent == pytest.approx(
        {
            "training": 30 + 50,
            "start and compile": 17,
            "data wait": 3,
            "save stall": 2,
            "evaluation": 4,
            "lost to rework": 11,
            "down": 6,
        }
    )
    assert sum(spent.values()) == pytest.approx(1123 - 1000)
    assert sum(goodput.shares(spent).values()) == pytest.approx(100)


def test_running_attempt_counts_and_one_that_was_killed_is_recorded_once(tmp_path: Path) -> None:
    heart = Heartbeat(tmp_path, began=0.0)
    heart.first_step = 3
    heart.beat("train", 5)
    seen = sum(goodput.goodput(tmp_path).values())
    assert seen == pytest.approx(time.time(), abs=0.5)
    for _ in range(2):
        goodput.record(tmp_path)
    assert sum(goodput.goodput(tmp_path).values()) == pytest.approx(seen)


def test_before_the_first_attempt_goodput_is_empty(tmp_path: Path) -> None:
    assert goodput.goodput(tmp_path) == {}
