"""Whether a training that died is worth another attempt, and after what pause."""

from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from time import sleep

from model.errors import KodaError
from model.training.records import EVENTS, Event, EventRecord, log_event, read_events
from tasks.progress import clock, log_line
from tasks.runs.attempts import ENDS, LIMIT
from tasks.supervise import Death, ProcessFailed

WITHOUT_SAVE = 10  # deaths of its own, at whatever steps, since the last save
AHEAD = 2  # steps that a training's loop may be ahead of the device
LONGEST_PAUSE = 60.0  # seconds


def log_death(folder: Path, failure: ProcessFailed, saved: int, reached: int) -> None:
    """Add the end of an attempt to the event log: what `failure` says of it, the last step that is `saved`, and the
    step that the attempt had `reached`."""
    at = saved if failure.death is Death.ROLLED_BACK else reached  # a rollback gets nowhere before the next save
    facts = {"death": failure.death, "reached": at, "last_line": failure.last_line[:300]}
    log_event(folder, Event.CRASH, saved, cause=failure.how, **facts)


def begin_attempt(folder: Path, label: str, saved: int) -> None:
    """Count an attempt at a training whose last save is of step `saved`; the more deaths since, the longer the pause.

    A training that others kill goes on, however often. Raises KodaError where it dies of itself LIMIT times at one
    step, or WITHOUT_SAVE times since the last save.
    """
    died = list(since_progress(read_events(folder), saved))
    own = [record for record in died if record.details.get("death") != Death.OUTSIDE]
    at_one_step = list(takewhile(lambda record: abs(_reached(record) - _reached(own[0])) <= AHEAD, own))
    same = len(at_one_step) >= LIMIT
    if same or len(own) >= WITHOUT_SAVE:
        count, step = (len(at_one_step), _reached(own[0])) if same else (len(own), saved)
        where = f"at step {step:,}" if same else f"after step {step:,} was saved, before the next save"
        log_event(folder, Event.GIVEN_UP, saved, cause=f"it died {count} times {where}")
        raise KodaError(
            f"training died {count} times {where}; {folder / EVENTS} and the end of {folder / 'training.log'} have the "
            "causes. The last good checkpoint is kept; the same command tries again. Where numbers were not finite, a "
            "smaller learning_rate helps."
        )
    if pause := pause_after(len(died)):
        others = f", {len(died) - len(own)} of them killed from outside" if len(own) < len(died) else ""
        log_line(f"{label:<10} died {len(died)} times since its last save{others}: it goes on in {clock(pause)}")
        sleep(pause)
    log_event(folder, Event.ATTEMPT, saved)


def pause_after(deaths: int) -> float:
    """Seconds to wait after so many deaths since the last save: 0 after the first, then 2, 4, 8, …"""
    return min(LONGEST_PAUSE, 2.0 ** (deaths - 1)) if deaths > 1 else 0.0


def since_progress(events: Sequence[EventRecord], saved: int) -> Iterator[EventRecord]:
    """The deaths since step `saved` was saved, or since an attempt ended well or was given up; the newest first."""
    for record in reversed(events):
        if record.event in ENDS or (record.event is Event.CRASH and record.step != saved):
            return
        if record.event is Event.CRASH:
            yield record


def _reached(death: EventRecord) -> int:
    return int(death.details.get("reached", death.step))
