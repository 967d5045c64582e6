"""events.jsonl and metrics.jsonl: what is written is what is read, and what of it is shown."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from model.files import append_line
from model.training.records import (
    EVENTS,
    METRICS,
    SHOWN,
    Event,
    EventRecord,
    HeldoutMetrics,
    Metrics,
    TrainingMetrics,
    log_event,
    read_events,
    read_metrics,
    remaining_seconds,
    restarts,
    shown,
)


def events(*of: tuple[Event, int]) -> list[EventRecord]:
    """Events at these steps, a second apart."""
    return [EventRecord(event, step, float(number)) for number, (event, step) in enumerate(of)]


def trained(step: int, seconds: float) -> TrainingMetrics:
    """The figures of a step that ended `seconds` after the training began."""
    return TrainingMetrics(
        step=step, time=seconds, loss=3.0, grad_norm=1.0, learning_rate=1e-3, tokens=512 * step, data_seconds=0.0
    )


@pytest.mark.parametrize("event", Event)
def test_every_event_is_read_as_it_was_logged(tmp_path: Path, event: Event) -> None:
    before = time.time()
    log_event(tmp_path, event, 7)
    log_event(tmp_path, event, 8, cause="a cause", devices=2, seconds={"train": 1.5})
    plain, detailed = read_events(tmp_path)
    assert before <= plain.time <= detailed.time <= time.time()
    assert plain == EventRecord(event, 7, plain.time)
    assert detailed == EventRecord(event, 8, detailed.time, "a cause", {"devices": 2, "seconds": {"train": 1.5}})
    assert plain.event is detailed.event is event


@pytest.mark.parametrize("line", [3, None, [1], {}, {"event": "start"}, {"event": "later", "step": 1, "time": 2.0}])
def test_lines_of_another_version_are_left_out(tmp_path: Path, line: Any) -> None:
    log_event(tmp_path, Event.START, 0)
    append_line(tmp_path / EVENTS, line)
    append_line(tmp_path / METRICS, line)
    assert [record.event for record in read_events(tmp_path)] == [Event.START] and not read_metrics(tmp_path)


def test_training_without_files_has_no_records(tmp_path: Path) -> None:
    assert read_events(tmp_path) == [] and not read_metrics(tmp_path)


def test_resume_that_was_planned_is_not_shown() -> None:
    """A segment goes on where the one before it ended, whatever was logged between the two; after anything else a
    resume is shown."""
    segments = events(
        (Event.ATTEMPT, 0),
        (Event.START, 0),
        (Event.SAVED, 10),
        (Event.DONE, 10),
        (Event.SPENT, 10),
        (Event.ATTEMPT, 10),
    )
    assert shown([*segments, *events((Event.RESUME, 10), (Event.SAVED, 20), (Event.DONE, 20))]) == []
    for event in (Event.CRASH, Event.PREEMPTION, Event.ROLLBACK):
        unplanned = events((event, 12), (Event.ATTEMPT, 10), (Event.RESUME, 10))
        assert shown([*segments, *events((Event.RESUME, 10)), *unplanned]) == [unplanned[0], unplanned[2]]


def test_second_resume_after_one_that_was_planned_is_shown() -> None:
    """The attempt at the second segment died before it logged anything more."""
    logged = events((Event.DONE, 10), (Event.RESUME, 10), (Event.RESUME, 10))
    assert shown(logged) == logged[2:]
    logged = events((Event.DONE, 10), (Event.RESUME, 10), (Event.CRASH, 12), (Event.RESUME, 10))
    assert shown(logged) == logged[2:]


def test_course_of_a_run_that_goes_well_is_not_shown() -> None:
    course = {
        Event.ATTEMPT,
        Event.SCHEDULED,
        Event.START,
        Event.FORM,
        Event.SAVED,
        Event.SPENT,
        Event.REPLAY,
        Event.END,
        Event.DONE,
    }
    assert set(Event) - SHOWN == course
    for event in Event:
        assert bool(shown(events((event, 1)))) == (event not in course)


def test_both_kinds_of_metrics_are_told_apart_and_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    training = [trained(step, step / 10) for step in (5, 10, 15)]
    heldout = [HeldoutMetrics(step, step / 10, 4.5) for step in (10, 15)]
    for line in (training[0], training[1], heldout[0], training[2]):
        append_line(tmp_path / METRICS, asdict(line))
    with (tmp_path / METRICS).open("a") as file:  # a full disk cut it short, and later there was room again
        file.write(json.dumps(asdict(trained(16, 1.6)))[:60] + "\n")
    append_line(tmp_path / METRICS, asdict(heldout[1]))
    metrics = read_metrics(tmp_path)
    assert metrics == Metrics(training, heldout) and metrics


def test_metrics_of_another_version_are_left_out(tmp_path: Path) -> None:
    """With a field less or a field more."""
    line = asdict(trained(5, 0.5))
    append_line(tmp_path / METRICS, {name: line[name] for name in ("step", "time", "loss")})
    append_line(tmp_path / METRICS, {**line, "perplexity": 20.0})
    append_line(tmp_path / METRICS, line)
    assert read_metrics(tmp_path).training == [trained(5, 0.5)]


def test_held_out_losses_alone_are_no_logged_step() -> None:
    assert not Metrics([], [HeldoutMetrics(1, 0.1, 4.5)])


def test_restart_is_an_attempt_after_one_that_did_not_reach_its_end() -> None:
    logged = events(
        (Event.ATTEMPT, 0),
        (Event.DONE, 10),
        (Event.ATTEMPT, 10),  # the second segment, as planned
        (Event.CRASH, 17),
        (Event.ATTEMPT, 15),
        (Event.PREEMPTION, 18),
        (Event.ATTEMPT, 18),
        (Event.DONE, 20),
    )
    assert restarts(logged) == [15, 18]
    assert restarts(logged[:3]) == restarts([]) == []


def test_remaining_time_is_that_of_the_last_logged_steps() -> None:
    """Slow to begin with; the last twenty lines, of five steps each, took half a second a step."""
    slow = [trained(step, 60.0 * step) for step in range(1, 6)]
    fast = [trained(5 + 5 * n, 300 + 2.5 * n) for n in range(1, 21)]
    assert remaining_seconds(Metrics([*slow, *fast], []), 105, 205) == pytest.approx(50)
    assert remaining_seconds(Metrics(slow, []), 5, 6) == pytest.approx(60)
    assert remaining_seconds(Metrics(fast, []), 205, 205) is None
    assert remaining_seconds(Metrics(fast[:1], []), 10, 205) is None
