"""How a training's wall-clock was spent, over all its attempts; the parts add up to the whole."""

from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from model.training.heartbeat import Heartbeat
from model.training.records import Event, log_event, read_events

# What a heartbeat's phase counts as.
PARTS = {
    "start": "start and compile",
    "compile": "start and compile",
    "train": "training",
    "data": "data wait",
    "save": "save stall",
    "evaluate": "evaluation",
}
REWORK, DOWN = "lost to rework", "down"


@dataclass(frozen=True)
class Spent:
    """How one attempt used its time."""

    began: float  # as `time.time()`
    first_step: int | None  # where it went on from; None where it did not get that far
    step: int  # where it ended
    seconds: dict[str, float]  # by phase


def record(folder: Path) -> None:
    """Add how the last attempt used its time to the event log, as its last heartbeat has it; once for each attempt."""
    last = _last(folder)
    if last is not None and last.began not in {attempt.began for attempt in _logged(folder)}:
        facts = asdict(last)
        log_event(folder, Event.SPENT, facts.pop("step"), **facts)


def goodput(folder: Path) -> dict[str, float]:
    """Seconds by what they went into, from the first attempt's beginning to the last heartbeat; empty before that.

    Steps that a later attempt repeated were `lost to rework`: their share of the attempt's training time. The time
    between two attempts was `down`.
    """
    attempts, last = _logged(folder), _last(folder)
    if last is not None and last.began not in {attempt.began for attempt in attempts}:
        attempts.append(last)
    spent = dict.fromkeys((*PARTS.values(), REWORK, DOWN), 0.0)
    for number, attempt in enumerate(attempts):
        later_first = (later.first_step for later in attempts[number + 1 :] if later.first_step is not None)
        resumed_at = next(later_first, attempt.step)
        steps = attempt.step - attempt.first_step if attempt.first_step is not None else 0
        lost = min(1.0, max(0, attempt.step - resumed_at) / steps) if steps else 0.0
        for phase, seconds in attempt.seconds.items():
            wasted = seconds * lost if phase in ("train", "data") else 0.0
            spent[PARTS[phase]] += seconds - wasted
            spent[REWORK] += wasted
    for attempt, after in pairwise(attempts):
        spent[DOWN] += max(0.0, after.began - attempt.began - sum(attempt.seconds.values()))
    return spent if attempts else {}


def shares(spent: dict[str, float]) -> dict[str, float]:
    """The same in percent."""
    total = sum(spent.values())
    return {part: 100 * seconds / total for part, seconds in spent.items()} if total else {}


def _logged(folder: Path) -> list[Spent]:
    records = [record for record in read_events(folder) if record.event is Event.SPENT]
    return sorted((Spent(step=r.step, **r.details) for r in records), key=lambda attempt: attempt.began)


def _last(folder: Path) -> Spent | None:
    beat = Heartbeat.read(folder)
    return Spent(beat["began"], beat["first_step"], beat["step"], beat["seconds"]) if beat else None
