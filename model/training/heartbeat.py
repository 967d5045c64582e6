"""The heartbeat of a training process: a file that its supervisor watches."""

import json
import os
import time
from collections import deque
from pathlib import Path
from typing import Any

from model.errors import KodaError
from model.files import disk_full, read_object

HEARTBEAT = "heartbeat.json"
FIELDS = {"pid", "phase", "step", "pace", "loss", "began", "ended", "first_step", "seconds", "saves"}


class Heartbeat:
    """A file with the current step, phase (start, compile, train, data, save, evaluate, replay), and the time spent."""

    def __init__(self, folder: Path, began: float, writes: bool = True):
        """`began`: when the process did, as `time.time()`; of several processes only one `writes`."""
        self.path, self.writes = folder / HEARTBEAT, writes
        self.began, self.loss = began, 0.0
        self.saves: dict[str, float] = {}  # seconds between temporary saves, and what one costs
        self.first_step: int | None = None  # where the attempt went on from; None until it is known
        self.seconds: dict[str, float] = {}
        self._phase, self._since = "start", time.monotonic() - (time.time() - began)  # a clock may be set
        self._paces: deque[float] = deque(maxlen=128)
        self._trained: float | None = None

    def turn(self, phase: str) -> None:
        """From now on the time goes into `phase`."""
        now = time.monotonic()
        self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + max(0.0, now - self._since)
        self._phase, self._since = phase, now

    def spend(self, phase: str, seconds: float) -> None:
        """So many of the seconds just past went into `phase`, and not into the current one."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds
        self._since += seconds

    def beat(self, phase: str, step: int) -> None:
        """Turn to `phase`, at `step`, and write the file."""
        self.turn(phase)
        now = time.monotonic()
        if phase == "train" and self._trained is not None:
            self._paces.append(now - self._trained)
        self._trained = now if phase == "train" else None
        if not self.writes:
            return
        beside = self.path.with_suffix(".new")
        contents = {
            "pid": os.getpid(),
            "phase": phase,
            "step": step,
            "pace": self.pace(),
            "loss": self.loss,
            "began": self.began,
            "ended": time.time(),
            "first_step": self.first_step,
            "seconds": self.seconds,
            "saves": self.saves,
        }
        try:
            beside.write_text(json.dumps(contents))
            beside.replace(self.path)
        except OSError as error:
            if not disk_full(error) or not self.path.exists():
                raise
            os.utime(self.path)  # alive, though there is no room for more

    def pace(self) -> float:
        """Seconds from one step to the next, the 95th percentile of the last ones; 0 before there are any."""
        paces = sorted(self._paces)
        return paces[int(0.95 * (len(paces) - 1))] if paces else 0.0

    @staticmethod
    def read(folder: Path) -> dict[str, Any] | None:
        """The last beat, or None before the first one and for one of another version; its `time` is when the file was
        last touched."""
        try:
            beat, touched = read_object(folder / HEARTBEAT), (folder / HEARTBEAT).stat().st_mtime
        except (OSError, KodaError):
            return None
        return {**beat, "time": touched} if beat.keys() >= FIELDS else None
