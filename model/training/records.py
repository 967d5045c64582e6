"""What a training writes down while it runs: events.jsonl and metrics.jsonl, a JSON object in each line."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from model.errors import KodaError
from model.files import COMMIT, append_line, committed_steps, read_json, read_lines

METRICS = "metrics.jsonl"
EVENTS = "events.jsonl"
JOB = "job.json"  # what the training is to do; in its folder since it began
CHECKPOINTS = "checkpoints"
SNAPSHOTS = "snapshots"  # weights to look at, which no stage reads: they are no outputs
WINDOWS = "windows.json"  # data to step over: [[from this step on, so many batches], …]


class Event(StrEnum):
    """What can happen to a run or a training."""

    ATTEMPT = "attempt"  # a process is about to be started for it
    SCHEDULED = "scheduled"  # Prefect was given a flow run that goes on with a crashed one
    START = "start"  # from step 0
    RESUME = "resume"  # from a checkpoint
    FORM = "form"  # in which the step is computed, where memory decided that
    SAVED = "saved"  # a permanent checkpoint
    SPENT = "spent"  # how an attempt used its time
    END = "end"  # of an attempt, other than by its death
    DONE = "done"  # the step to end with was reached
    PREEMPTION = "preemption"  # it was stopped, and saved
    CRASH = "crash"
    GIVEN_UP = "given up"
    REFUSED = "refused"  # the configuration cannot be trained here
    ROLLBACK = "rollback"  # bad steps in a row: back to the last checkpoint
    SPIKE = "spike"
    SKIPPED = "skipped"  # a step whose numbers are not finite
    STRAGGLER = "straggler"  # one of several processes is slower than the others
    SAVE_FAILED = "save failed"
    CORRUPT = "corrupt checkpoint"
    UNFINISHED = "unfinished checkpoint"
    REPLAY = "replay"  # steps were computed a second time, with the same bits
    WRONG_BITS = "wrong bits"  # with other bits
    FETCHED = "fetched"  # a checkpoint, from the second place
    COPY_FAILED = "copy failed"  # to the second place, or from it


# Events that are shown to people. The others are the course of a run that goes well.
SHOWN = {
    Event.RESUME,
    Event.PREEMPTION,
    Event.CRASH,
    Event.GIVEN_UP,
    Event.REFUSED,
    Event.ROLLBACK,
    Event.SPIKE,
    Event.SKIPPED,
    Event.STRAGGLER,
    Event.SAVE_FAILED,
    Event.CORRUPT,
    Event.UNFINISHED,
    Event.WRONG_BITS,
    Event.FETCHED,
    Event.COPY_FAILED,
}


@dataclass(frozen=True)
class EventRecord:
    """A line of events.jsonl."""

    event: Event
    step: int
    time: float  # as `time.time()`
    cause: str = ""
    details: dict[str, Any] = field(default_factory=dict)  # what else the line has


@dataclass(frozen=True)
class TrainingMetrics:
    """Figures of one step, each some steps."""

    step: int
    time: float  # as `time.time()`
    loss: float  # of the batch, nats per trained token
    grad_norm: float  # before clipping
    learning_rate: float
    tokens: int  # read so far
    data_seconds: float  # that the device waited for this batch


@dataclass(frozen=True)
class HeldoutMetrics:
    """A measurement on the held-out rows."""

    step: int
    time: float  # as `time.time()`
    heldout_loss: float  # nats per trained token


@dataclass(frozen=True)
class Metrics:
    """Both kinds of lines of metrics.jsonl, each in the order of its steps."""

    training: list[TrainingMetrics]
    heldout: list[HeldoutMetrics]

    def __bool__(self) -> bool:
        """Was any step logged?"""
        return bool(self.training)


Line = TypeVar("Line", TrainingMetrics, HeldoutMetrics)


def read_metrics(folder: Path) -> Metrics:
    """The metrics of the training in `folder`; empty before its first line."""
    logged = read_lines(folder / METRICS)
    return Metrics(_of_kind(TrainingMetrics, logged), _of_kind(HeldoutMetrics, logged))


def _of_kind(kind: type[Line], logged: Sequence[dict[str, Any]]) -> list[Line]:
    names = {f.name for f in fields(kind)}
    return [kind(**line) for line in logged if line.keys() == names]


def read_events(folder: Path) -> list[EventRecord]:
    """The events of the training in `folder`, in their order; those of another version are left out."""
    return [
        EventRecord(Event(line.pop("event")), line.pop("step"), line.pop("time"), line.pop("cause", ""), line)
        for line in read_lines(folder / EVENTS)
        if line.get("event") in [*Event] and line.keys() >= {"step", "time"}
    ]


def shown(events: Sequence[EventRecord]) -> list[EventRecord]:
    """The events to show to people; that a segment goes on where the one before it ended is none of them."""
    worth, previous = [], None
    for record in events:
        planned = record.event is Event.RESUME and previous is Event.DONE
        if record.event in SHOWN and not planned:
            worth.append(record)
        if record.event in SHOWN or record.event is Event.DONE:
            previous = record.event
    return worth


def restarts(events: Sequence[EventRecord]) -> list[int]:
    """The steps at which a training went on after an attempt that did not reach its end."""
    starts = [record for record in events if record.event in (Event.ATTEMPT, Event.DONE)]
    return [b.step for a, b in pairwise(starts) if a.event is b.event is Event.ATTEMPT]


def remaining_seconds(metrics: Metrics, step: int, steps: int) -> float | None:
    """Seconds to the end at the pace of the last logged steps; None where there is no pace yet."""
    recent = metrics.training[-20:]
    if step >= steps or len(recent) < 2 or recent[-1].step <= recent[0].step:
        return None
    pace = (recent[-1].time - recent[0].time) / (recent[-1].step - recent[0].step)
    return round(pace * (steps - step), 1)


def newest_step(folder: Path) -> int:
    """The newest committed step, 0 where there is none."""
    return max(committed_steps(folder / CHECKPOINTS), default=0)


def lasting_first(checkpoints: Path) -> list[int]:
    """The committed steps for a reader beside a training: permanent ones, the newest first, and then temporary ones,
    which may be gone in a moment."""
    steps = committed_steps(checkpoints)[::-1]

    def is_temporary(step: int) -> bool:
        try:
            return not read_json(checkpoints / str(step) / COMMIT)["permanent"]
        except (OSError, KodaError, KeyError):
            return True

    return sorted(steps, key=is_temporary)


def log_event(folder: Path, event: Event, step: int, **more: Any) -> None:
    """Add to the event log: what happened, when, at which step, and why (`cause`)."""
    append_line(folder / EVENTS, {"time": time.time(), "event": event, "step": step, **more})
