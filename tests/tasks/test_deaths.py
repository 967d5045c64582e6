import signal
import sys
from pathlib import Path

import pytest

from model.errors import KodaError
from model.training.records import Event, log_event, read_events, restarts
from tasks import deaths
from tasks.deaths import WITHOUT_SAVE, begin_attempt, log_death, pause_after
from tasks.runs.attempts import LIMIT
from tasks.supervise import Death, ProcessFailed, supervise


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, none of them in fact."""
    made: list[float] = []
    monkeypatch.setattr(deaths, "sleep", made.append)
    return made


def die(folder: Path, saved: int, reached: int, code: str = "raise RuntimeError('of this cause')") -> None:
    """An attempt, from step `saved` to step `reached`, that ends as a process with this code does."""
    begin_attempt(folder, "pretrain", saved)
    with pytest.raises(ProcessFailed) as failed:
        supervise([sys.executable, "-S", "-c", code], folder / "log")
    log_death(folder, failed.value, saved, reached)


def test_training_that_dies_at_one_step_is_given_up_and_whoever_starts_it_again_has_a_new_budget(
    tmp_path: Path,
) -> None:
    for _ in range(2):
        for _ in range(LIMIT):
            die(tmp_path, 60, 94)
        with pytest.raises(KodaError, match=rf"died {LIMIT} times at step 94.*(?s:.)*smaller learning_rate"):
            begin_attempt(tmp_path, "pretrain", 60)
        assert read_events(tmp_path)[-1].event is Event.GIVEN_UP


def test_loop_that_was_a_step_ahead_died_at_the_same_step(tmp_path: Path) -> None:
    for reached in (94, 95, 93):
        die(tmp_path, 60, reached)
    with pytest.raises(KodaError, match="3 times at step 93"):
        begin_attempt(tmp_path, "pretrain", 60)


def test_training_that_is_killed_goes_on_with_a_growing_pause_and_says_so(
    tmp_path: Path, pauses: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    """Three kills between two saves ended a training once, though it had come further than the save."""
    kills = (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGHUP, signal.SIGKILL)
    for number in kills:
        die(tmp_path, 60, 61, f"import os; os.kill(os.getpid(), {int(number)})")
    die(tmp_path, 60, 94, "import os; os.abort()")
    begin_attempt(tmp_path, "pretrain", 60)
    assert pauses == [2, 4, 8, 16, 32]
    assert "died 6 times since its last save, 5 of them killed from outside: it goes on in 32 s" in (
        capsys.readouterr().out
    )
    die(tmp_path, 80, 99)  # a save in between is progress
    begin_attempt(tmp_path, "pretrain", 80)
    assert pauses[5:] == []


def test_training_that_dies_at_many_steps_before_every_save_is_given_up(tmp_path: Path) -> None:
    for number in range(WITHOUT_SAVE):
        die(tmp_path, 60, 64 + 5 * number)
    with pytest.raises(KodaError, match=f"died {WITHOUT_SAVE} times after step 60 was saved"):
        begin_attempt(tmp_path, "pretrain", 60)


def test_rollbacks_count_by_the_step_they_go_back_to(tmp_path: Path) -> None:
    """They skip the data before they come to the next, so that each ends at another step."""
    for reached in (25, 30, 35):
        die(tmp_path, 20, reached, "raise SystemExit(76)")
    with pytest.raises(KodaError, match="3 times at step 20"):
        begin_attempt(tmp_path, "pretrain", 20)


@pytest.mark.parametrize("end", [Event.DONE, Event.PREEMPTION])
def test_attempt_that_ended_well_is_progress(tmp_path: Path, end: Event) -> None:
    for _ in range(LIMIT):
        die(tmp_path, 60, 94)
    log_event(tmp_path, end, 60)
    begin_attempt(tmp_path, "pretrain", 60)


def test_death_is_recorded_with_its_cause_and_its_last_line(tmp_path: Path) -> None:
    die(tmp_path, 60, 94)
    begin_attempt(tmp_path, "pretrain", 60)
    attempt, crash, _ = read_events(tmp_path)
    assert (crash.event, crash.step, crash.cause) == (Event.CRASH, 60, "ended with exit code 1")
    assert crash.details == {"death": Death.ERROR, "reached": 94, "last_line": "RuntimeError: of this cause"}
    assert restarts([attempt, crash, *read_events(tmp_path)[2:]]) == [60]


def test_pause_grows_to_a_minute() -> None:
    assert [pause_after(count) for count in (0, 1, 2, 3, 6, 7, 50)] == [0, 0, 2, 4, 32, 60, 60]
