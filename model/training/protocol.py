"""What a training process and whoever watches it agree on: exit codes, the heartbeat, the diary of events."""

import ctypes
import json
import os
import signal
import time
from collections import deque
from itertools import pairwise
from pathlib import Path
from typing import Any

from model.files import disk_full, read_json

DONE = 0
PREEMPTED = 75  # asked to stop, saved, and left
ROLLED_BACK = 76  # bad numbers in a row: start again, behind that window of data
UNUSABLE = 78  # a configuration that no retry can mend; the last line of the log says what

HEARTBEAT = "heartbeat.json"
METRICS = "metrics.jsonl"
EVENTS = "events.jsonl"
CHECKPOINTS = "checkpoints"
WINDOWS = "windows.json"  # data to step over: [[from this step on, so many batches], …]


class Heartbeat:
    """A file that says: alive, at this step, in this phase (start, compile, train, data, save, evaluate), and how the
    life's seconds were spent so far."""

    def __init__(self, folder: Path, began: float, writes: bool = True):
        """`began`: when the process did, as `time.time()`; of several processes only one `writes`."""
        self.path, self.writes = folder / HEARTBEAT, writes
        self.began, self.loss = began, 0.0
        self.first_step: int | None = None  # where the life went on from; None until it knows
        self.seconds: dict[str, float] = {}
        self._phase, self._since = "start", began
        self._paces: deque[float] = deque(maxlen=128)
        self._trained: float | None = None

    def turn(self, phase: str) -> None:
        """From now on the time goes into `phase`."""
        now = time.time()
        self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + max(0.0, now - self._since)
        self._phase, self._since = phase, now

    def spend(self, phase: str, seconds: float) -> None:
        """So many of the seconds just past went into `phase`, and not into what the life is at."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds
        self._since += seconds

    def beat(self, phase: str, step: int) -> None:
        """Turn to `phase`, at `step`, and say so."""
        self.turn(phase)
        now = time.monotonic()
        if phase == "train" and self._trained is not None:
            self._paces.append(now - self._trained)
        self._trained = now if phase == "train" else None
        if not self.writes:
            return
        beside = self.path.with_suffix(".new")
        told = {
            "pid": os.getpid(),
            "phase": phase,
            "step": step,
            "pace": self.pace(),
            "loss": self.loss,
            "began": self.began,
            "first_step": self.first_step,
            "seconds": self.seconds,
        }
        try:
            beside.write_text(json.dumps(told))
            beside.replace(self.path)
        except OSError as error:
            if not disk_full(error) or not self.path.exists():
                raise
            os.utime(self.path)  # alive, though there is no room to say at what

    def pace(self) -> float:
        """Seconds from one step to the next, the 95th percentile of the last ones; 0 before there are any."""
        paces = sorted(self._paces)
        return paces[int(0.95 * (len(paces) - 1))] if paces else 0.0

    @staticmethod
    def read(folder: Path) -> dict[str, Any] | None:
        """The last beat, or None where there never was one; its `time` is that of the last sign of life."""
        try:
            return {**read_json(folder / HEARTBEAT), "time": (folder / HEARTBEAT).stat().st_mtime}
        except (OSError, ValueError):
            return None


def append(path: Path, line: dict[str, Any]) -> None:
    """Add one JSON line, in a single write, so that two writers never mix. On a full disk it is lost: what happens goes
    on, and who writes it down must not be what stops it."""
    try:
        with path.open("ab", buffering=0) as file:
            file.write((json.dumps(line) + "\n").encode())
    except OSError as error:
        if not disk_full(error):
            raise


def event(folder: Path, name: str, step: int, **more: Any) -> None:
    """Write into the diary: what happened, when, at which step, and why."""
    append(folder / EVENTS, {"time": time.time(), "event": name, "step": step, **more})


def lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a diary or of the metrics; one that a crash cut short is left out."""
    found = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return found


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the process that started this one dies (Linux)."""
    pr_set_pdeathsig = 1
    try:
        ctypes.CDLL("libc.so.6").prctl(pr_set_pdeathsig, signal.SIGTERM)
    except OSError:
        return


def restarts(folder: Path) -> list[int]:
    """The steps at which a training went on after a life that did not reach its end."""
    starts = [line for line in lines(folder / EVENTS) if line["event"] in ("life", "done")]
    return [b["step"] for a, b in pairwise(starts) if a["event"] == b["event"] == "life"]
