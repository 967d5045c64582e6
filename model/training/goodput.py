"""How a training's wall-clock was spent, over all its attempts; the parts add up to the whole."""

from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from statistics import median

from model.training.cadence import FAULT_EVERY
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
    "replay": "replay",
}
REWORK, DOWN = "lost to rework", "down"
USEFUL = ("training", "evaluation")


@dataclass(frozen=True)
class Spent:
    """How one attempt used its time."""

    began: float  # as `time.time()`
    first_step: int | None  # where it went on from; None where it did not get that far
    step: int  # where it ended
    ended: float  # as `time.time()`, at its last heartbeat
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
    return _spent(_attempts(folder))


def _spent(attempts: list[Spent]) -> dict[str, float]:
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
    spent[DOWN] = sum(_pauses(attempts))
    return spent if attempts else {}


def shares(spent: dict[str, float]) -> dict[str, float]:
    """The same in percent."""
    total = sum(spent.values())
    return {part: 100 * seconds / total for part, seconds in spent.items()} if total else {}


@dataclass(frozen=True)
class Effective:
    """The share of the wall-clock in which a training made progress: steps that were not repeated, and measurements."""

    share: float  # of all the time so far, the pauses between attempts included
    hourly_fault: float  # what it would be with a fault each hour, by this training's own costs
    fault_seconds: float  # what such a fault would cost: the restart, and the steps since the last save


def effective(folder: Path) -> Effective | None:
    """The effective time of the training in `folder`; None before its first step.

    A restart costs the median over those that there were, of segments too; before there is one, what the first start
    took, which has to compile. A fault comes in the middle between two saves on average.
    """
    attempts = _attempts(folder)
    spent = _spent(attempts)
    total, useful = sum(spent.values()), sum(spent[part] for part in USEFUL) if spent else 0.0
    if not useful:
        return None
    starts = [sum(attempt.seconds.get(phase, 0.0) for phase in ("start", "compile")) for attempt in attempts]
    restarts = [down + start for down, start in zip(_pauses(attempts), starts[1:], strict=True)] or starts
    saves = (Heartbeat.read(folder) or {}).get("saves")
    fault = median(restarts) + (saves["interval"] if saves else attempts[-1].seconds.get("train", 0.0)) / 2
    steady = useful / (useful + spent["data wait"] + spent["save stall"] + spent["replay"])
    if saves:
        steady *= 1 - saves["slowdown"] / saves["interval"]
    return Effective(useful / total, steady * max(0.0, 1 - fault / FAULT_EVERY), fault)


def _pauses(attempts: list[Spent]) -> list[float]:
    """Seconds between each attempt and the next. A clock that is set within an attempt does not matter."""
    return [max(0.0, after.began - before.ended) for before, after in pairwise(attempts)]


def _attempts(folder: Path) -> list[Spent]:
    """How each attempt used its time, the one that is going on included; in their order."""
    attempts, last = _logged(folder), _last(folder)
    if last is not None and last.began not in {attempt.began for attempt in attempts}:
        attempts.append(last)
    return attempts


def _logged(folder: Path) -> list[Spent]:
    names = {f.name for f in fields(Spent)} - {"step"}
    records = [r for r in read_events(folder) if r.event is Event.SPENT and r.details.keys() == names]
    return [Spent(step=r.step, **r.details) for r in records]


def _last(folder: Path) -> Spent | None:
    beat = Heartbeat.read(folder)
    return Spent(*(beat[name] for name in ("began", "first_step", "step", "ended", "seconds"))) if beat else None
