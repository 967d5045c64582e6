import time
from pathlib import Path

import pytest

from model.training import goodput
from model.training.heartbeat import HEARTBEAT, Heartbeat
from model.training.records import Event, log_event


def log_attempt(folder: Path, began: float, first: int | None, last: int, **seconds: float) -> None:
    """Log how an attempt, from step `first` to step `last`, used its time."""
    ended = began + sum(seconds.values())
    log_event(folder, Event.SPENT, last, began=began, first_step=first, ended=ended, seconds=seconds)


def test_clock_that_is_set_adds_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heart = Heartbeat(tmp_path, time.time())
    heart.beat("train", 1)
    late = time.time() + 3600
    monkeypatch.setattr(time, "time", lambda: late)
    heart.beat("train", 2)
    goodput.record(tmp_path)
    Heartbeat(tmp_path, late + 7).beat("start", 0)
    spent = goodput.goodput(tmp_path)
    assert spent["down"] == pytest.approx(7, abs=1) and sum(spent.values()) < 60


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
            "replay": 0,
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


@pytest.mark.parametrize("beat", ["{}", "[]", "3", "{", '{"step": 5}'])
def test_attempts_and_heartbeats_of_another_version_are_left_out(tmp_path: Path, beat: str) -> None:
    log_attempt(tmp_path, 1000.0, 0, 100, train=40)
    spent = goodput.goodput(tmp_path)
    log_event(tmp_path, Event.SPENT, 200, began=1100.0, first_step=100, seconds={"train": 9.0})  # when it ended is new
    (tmp_path / HEARTBEAT).write_text(beat)
    assert Heartbeat.read(tmp_path) is None
    assert goodput.goodput(tmp_path) == spent and goodput.effective(tmp_path) is not None


def test_before_the_first_attempt_goodput_is_empty(tmp_path: Path) -> None:
    assert goodput.goodput(tmp_path) == {}
    assert goodput.effective(tmp_path) is None


def test_effective_time_is_without_rework_starts_and_pauses(tmp_path: Path) -> None:
    """As above: of 123 s 80 made steps that counted, and 4 measured. A restart took 10 + 4 s, and 6 - 6 + 3 s."""
    log_attempt(tmp_path, 1000.0, 0, 100, start=5, compile=5, train=40, data=4, save=2, evaluate=4)
    log_attempt(tmp_path, 1064.0, None, 0, start=4)
    log_attempt(tmp_path, 1070.0, 75, 200, start=2, compile=1, train=50)
    time = goodput.effective(tmp_path)
    assert time is not None and time.share == pytest.approx(84 / 123)
    restart = (4 + 4 + 2 + 3) / 2  # the median of the two: 4 s down and 4 s of start, 2 s down and 3 s of start
    assert time.fault_seconds == pytest.approx(restart + 50 / 2)  # no save was measured: half of the last attempt
    assert time.hourly_fault == pytest.approx(84 / (84 + 3 + 2) * (1 - time.fault_seconds / 3600))


def test_fault_comes_in_the_middle_between_two_saves(tmp_path: Path) -> None:
    heart = Heartbeat(tmp_path, began=time.time() - 40)
    heart.saves = {"interval": 20.0, "stall": 0.05, "slowdown": 0.2, "write": 3.0}
    heart.seconds = {"start": 4.0, "compile": 6.0, "train": 30.0}
    heart.beat("train", 5)
    spent = goodput.effective(tmp_path)
    assert spent is not None
    assert spent.fault_seconds == pytest.approx(heart.seconds["start"] + 6 + 20 / 2)  # the first start, and no restart
    assert spent.hourly_fault == pytest.approx((1 - 0.2 / 20) * (1 - spent.fault_seconds / 3600))
