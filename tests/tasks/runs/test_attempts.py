import json
import time
from pathlib import Path
from typing import Any

import pytest

from model.errors import KodaError
from model.files import append_line, read_lines
from model.training.records import Event
from tasks.runs.attempts import ENDS, LIMIT, Attempts

GIVE_UP = "it died {died} times"


@pytest.fixture
def attempts(tmp_path: Path) -> Attempts:
    """The attempts of a journal that does not exist yet."""
    return Attempts(tmp_path / "attempts.jsonl")


def log(attempts: Attempts, event: Event, **facts: Any) -> None:
    """Another line of the journal, as a training writes some of them itself."""
    append_line(attempts.journal, {"time": 0.0, "event": event, **facts})


def test_attempts_that_died_at_the_same_progress_are_counted(attempts: Attempts) -> None:
    for died in range(LIMIT):
        assert attempts.without_progress(["tokenize"]) == died
        attempts.begin(["tokenize"], GIVE_UP)
    assert attempts.without_progress(["tokenize"]) == LIMIT


def test_attempt_that_ended_counts_no_more_and_neither_do_those_before_it(attempts: Attempts) -> None:
    for _ in range(LIMIT - 1):
        attempts.begin(0, GIVE_UP)
    attempts.end()
    assert attempts.without_progress(0) == 0
    attempts.begin(0, GIVE_UP)
    assert attempts.without_progress(0) == 1


@pytest.mark.parametrize("line", [3, None, [1], {}, {"event": "later"}])
def test_lines_of_another_version_count_as_no_attempt(attempts: Attempts, line: Any) -> None:
    attempts.begin(0, GIVE_UP, flow_run="a")
    append_line(attempts.journal, line)
    assert attempts.without_progress(0) == 1 and attempts.never_began("b") == 1
    attempts.schedule("b", "a")
    assert attempts.never_began("b") == 1


@pytest.mark.parametrize("event", Event)
def test_only_the_ends_of_attempts_reset_the_count(attempts: Attempts, event: Event) -> None:
    attempts.begin(0, GIVE_UP)
    log(attempts, event, progress=0)
    ends = event in (Event.END, Event.DONE, Event.PREEMPTION, Event.GIVEN_UP)
    assert ends == (event in ENDS)
    assert attempts.without_progress(0) == (0 if ends else 2 if event is Event.ATTEMPT else 1)


def test_progress_resets_the_count(attempts: Attempts) -> None:
    for progress in (0, 0, 20, 20):
        attempts.begin(progress, GIVE_UP)
    assert attempts.without_progress(20) == 2
    assert attempts.without_progress(40) == 0
    assert attempts.without_progress(0) == 0  # another one, if not a later one
    for progress in range(60, 60 + 5 * LIMIT):
        attempts.begin(progress, GIVE_UP)


def test_limit_refuses_one_attempt_and_the_next_has_a_new_budget(attempts: Attempts) -> None:
    for _ in range(2):
        for _ in range(LIMIT):
            attempts.begin(0, GIVE_UP)
        with pytest.raises(KodaError, match=f"^it died {LIMIT} times$"):
            attempts.begin(0, GIVE_UP, flow_run="f")
        last = read_lines(attempts.journal)[-1]
        assert last["event"] == "given up" and last["flow_run"] == "f" and str(LIMIT) in last["cause"]
    attempts.begin(0, GIVE_UP)
    assert attempts.without_progress(0) == 1


def test_limit_is_that_of_the_work(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path / "attempts.jsonl", limit=1)
    attempts.begin(0, GIVE_UP)
    with pytest.raises(KodaError, match="died 1 times"):
        attempts.begin(0, GIVE_UP)


def test_facts_of_an_attempt_are_in_its_line(attempts: Attempts) -> None:
    before = time.time()
    attempts.begin(20, GIVE_UP, step=20, flow_run="f")
    (line,) = read_lines(attempts.journal)
    assert before <= line.pop("time") <= time.time()
    assert line == {"event": "attempt", "progress": 20, "step": 20, "flow_run": "f"}


def test_line_that_a_full_disk_cut_short_does_not_hide_the_others(attempts: Attempts) -> None:
    attempts.begin(0, GIVE_UP)
    with attempts.journal.open("a") as journal:
        journal.write(json.dumps({"event": "end"})[:-3] + "\n")
    assert attempts.without_progress(0) == 1


def test_flow_runs_that_never_began_are_counted_along_their_chain(attempts: Attempts) -> None:
    """b was created where a crashed, c where b did, d where c did; of another chain nothing counts."""
    for flow_run, after in (("b", "a"), ("y", "x"), ("c", "b"), ("d", "c")):
        attempts.schedule(flow_run, after)
    assert [attempts.never_began(flow_run) for flow_run in ("", "a", "b", "c", "d", "y")] == [0, 1, 2, 3, 4, 2]
    attempts.begin(0, GIVE_UP, flow_run="b")
    assert [attempts.never_began(flow_run) for flow_run in ("a", "b", "c", "d", "y")] == [1, 0, 1, 2, 2]
    assert attempts.began().keys() == {"b"} and attempts.began()["b"] == pytest.approx(time.time(), abs=60)


def test_flow_run_is_scheduled_once_however_often_it_is_noted(attempts: Attempts) -> None:
    for _ in range(3):
        attempts.schedule("b", "a")
    attempts.schedule("b", "c")
    lines = [(line["event"], line["flow_run"], line["after"]) for line in read_lines(attempts.journal)]
    assert lines == [("scheduled", "b", "a"), ("scheduled", "b", "c")]


def test_scheduled_flow_run_is_no_attempt_and_no_end(attempts: Attempts) -> None:
    attempts.begin(0, GIVE_UP, flow_run="a")
    attempts.schedule("b", "a")
    assert attempts.without_progress(0) == 1
