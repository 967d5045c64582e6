"""What a training writes down, sent to a tracker line by line: each once, and again where the training repeats it."""

import hashlib
import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from model.files import append_line, lock_file, read_json, read_lines
from model.training.records import JOB, read_events, read_metrics, shown
from tasks.runs.paths import RUN_TOML
from tasks.runs.record import versions
from tasks.trackers.tracker import Identity, Tracker

EVERY = 5.0  # seconds between two looks for new lines
MOST = 200  # lines that are sent before they are recorded as sent
BEFORE = 60.0  # seconds that the mirror of an earlier attempt may take to end
EVENT = "event"


@dataclass(frozen=True)
class Line:
    """A line of metrics.jsonl or events.jsonl. Kind, step and time are its identity: a repeated step has a new time."""

    kind: str  # train, heldout or event
    step: int
    time: float
    values: dict[str, float] = field(default_factory=dict)
    text: str = ""


def mirror(tracker: Tracker, training: Path, is_over: Callable[[float], bool]) -> None:
    """Send the lines of the training in this folder to a tracker, until `is_over`, and then the last ones.

    `is_over` waits so many seconds at most, and returns whether the training has ended.
    """
    while (identity := identify(training)) is None:
        if is_over(EVERY):
            return
    folder = kept_in(training)
    folder.mkdir(exist_ok=True)
    with lock_file(folder / f"{tracker.name}.lock", f"the mirror of {training} to {tracker.name}", BEFORE):
        sent = Sent(folder / f"{tracker.name}-{identity.id}.jsonl")
        config = configuration(training)
        tracker.open(identity, config)
        ended = False
        while True:
            send_new(tracker, training, sent)
            if ended:
                break
            ended = is_over(EVERY)
        tracker.close(finished=sent.newest >= config["recipe.steps"])
        sent.record(0)


def kept_in(training: Path) -> Path:
    """The folder of what mirrors keep: beside the training, for a finished stage is a fixed set of files."""
    return training.parent / f".{training.name}.tracking"


def identify(training: Path) -> Identity | None:
    """The identity of the training in a folder, by its first event; None before that.

    The stage's key would not do: `--from` builds a training once more under the same one.
    """
    events = read_events(training)
    if not events:
        return None
    training = training.absolute()
    run = next((parent for parent in training.parents if (parent / RUN_TOML).is_file()), training.parent)
    stage = training.relative_to(run).as_posix()
    began = events[0].time
    digest = hashlib.sha256(f"{run.name} {stage} {began!r}".encode()).hexdigest()
    return Identity(run, stage, began, re.sub(r"[^\w.-]", "-", f"{run.name}-{stage}-{digest[:12]}"))


def configuration(training: Path) -> dict[str, Any]:
    """What the training is: its recipe, its shape and the packages, as `recipe.steps`, `model.hidden_size`, …"""
    job = read_json(training / JOB)
    parts = {name: job[name] or {} for name in ("model", "compute", "recipe", "lora")} | {"versions": versions()}
    return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}


def read(training: Path) -> list[Line]:
    """All lines that a training has logged so far: metrics in the order of their steps, then the events to show."""
    metrics = read_metrics(training)
    lines = [_line("train", asdict(figures)) for figures in metrics.training]
    lines += [_line("heldout", {**asdict(figures), "loss": figures.heldout_loss}) for figures in metrics.heldout]
    lines.sort(key=lambda line: (line.step, line.time))
    return lines + [
        Line(EVENT, e.step, e.time, text=f"{e.event} at step {e.step:,}" + (f": {e.cause}" if e.cause else ""))
        for e in shown(read_events(training))
    ]


def _line(kind: str, figures: dict[str, float]) -> Line:
    names = figures.keys() - {"step", "time", "heldout_loss"}
    return Line(
        kind, int(figures["step"]), figures["time"], {f"{kind}/{name}": figures[name] for name in sorted(names)}
    )


def send_new(tracker: Tracker, training: Path, sent: "Sent") -> None:
    """Send the lines that the tracker does not have."""
    lines = [line for line in read(training) if line not in sent]
    for first in range(0, len(lines), MOST):
        some = lines[first : first + MOST]
        for line in some:
            if sent.is_back_at(line):
                tracker.rewind(line.step)
            if line.kind == EVENT:
                tracker.event(line.step, line.text, line.time)
            else:
                tracker.log(line.step, line.values, line.time)
            sent.add(line)
        tracker.flush()
        sent.flushed.append((time.monotonic(), some))
    sent.record(tracker.settles)


class Sent:
    """The lines that a tracker has. They are in a file too, from which the next process goes on.

    Where a process is killed between `flush` and `record`, its last lines are sent once more, with the same numbers.
    """

    def __init__(self, path: Path):
        self.path, self.newest = path, -1
        self.flushed: deque[tuple[float, list[Line]]] = deque()  # and not in the file yet; when, by the clock
        self.metrics: dict[tuple[str, int], float] = {}  # the time of each line
        self.events: set[float] = set()
        for line in read_lines(path):
            self.add(Line(**line))

    def __contains__(self, line: Line) -> bool:
        return line.time in self.events if line.kind == EVENT else self.metrics.get((line.kind, line.step)) == line.time

    def is_back_at(self, line: Line) -> bool:
        """Has the training gone back, and repeats this step?"""
        return line.kind != EVENT and (line.step < self.newest or (line.kind, line.step) in self.metrics)

    def add(self, line: Line) -> None:
        """Take note of a line that was handed over."""
        if line.kind == EVENT:
            self.events.add(line.time)
            return
        if self.is_back_at(line):
            self.metrics = {key: time for key, time in self.metrics.items() if key[1] < line.step}
        self.metrics[line.kind, line.step] = line.time
        self.newest = line.step

    def record(self, age: float) -> None:
        """Write down that the tracker has what was flushed so many seconds ago, or before."""
        while self.flushed and time.monotonic() - self.flushed[0][0] >= age:
            for line in self.flushed.popleft()[1]:
                append_line(self.path, {"kind": line.kind, "step": line.step, "time": line.time})
