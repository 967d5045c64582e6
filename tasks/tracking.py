"""Trackers beside a training: it neither knows of them nor waits for them.

Each is fed by a process of its own (`python -m tasks.trackers`), so that one that hangs takes nothing with it.
"""

import contextlib
import contextvars
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from model.errors import one_line
from model.niceness import set_niceness
from tasks.progress import log_line
from tasks.supervise import OF_CHILDREN
from tasks.trackers import TRACKERS
from tasks.trackers.mirror import kept_in

LAST = 30.0  # seconds that a tracker has, after the end of a training, for what it did not get yet
SHORTEST_PAUSE, LONGEST_PAUSE = 5.0, 300.0  # seconds before a mirror that failed is started again
NICENESS = 19  # of a mirror, while the training lasts: what a processor has left over


@contextlib.contextmanager
def tracked(training: Path, label: str, names: Sequence[str]) -> Iterator[None]:
    """Mirror the training in a folder to each of these trackers while the block lasts.

    Where it ends well, each has LAST seconds for the rest, all at the same time; after an error nothing is waited for.
    """
    mirrors = [Mirror(training, label, name) for name in dict.fromkeys(names)]
    threads = [
        # With its context, by which Prefect knows the run whose log it is.
        threading.Thread(target=contextvars.copy_context().run, args=(mirror.work,), daemon=True)
        for mirror in mirrors
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for mirror in mirrors:
            mirror.finish()
    for thread in threads:
        thread.join()


class Mirror:
    """The process that feeds one tracker, started again where it fails."""

    def __init__(self, training: Path, label: str, name: str):
        self.training, self.label, self.name = training, label, name
        self.done, self.deadline = threading.Event(), math.inf  # of what is sent after the end of the training
        self.log = kept_in(training) / f"{name}.log"

    def finish(self) -> None:
        """The training has ended: the tracker has LAST seconds from now."""
        self.deadline = time.monotonic() + LAST
        self.done.set()

    def work(self) -> None:
        """Feed the tracker until the end. What goes wrong is a line in the run's log: once, and at the end."""
        pause = SHORTEST_PAUSE
        while True:
            is_last = self.done.is_set()
            try:
                cause = self._feed()
            except OSError as error:  # a full disk, no memory for a process
                cause = one_line(error)
            if not cause or is_last or time.monotonic() > self.deadline:
                break
            if pause == SHORTEST_PAUSE and not self.done.is_set():
                self._print(f"fails, and is tried again while the training goes on: {cause} ({self.log} has more)")
            self.done.wait(pause)
            pause = min(LONGEST_PAUSE, 2 * pause)
        if cause:
            self._print(f"did not get everything: {cause}. `{TRACKERS[self.name].rest(self.training)}` sends the rest")

    def _feed(self) -> str:
        """Run the process to its end; returns why it failed, empty where it did not."""
        self.log.parent.mkdir(exist_ok=True)
        with self.log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "tasks.trackers", self.name, str(self.training)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **OF_CHILDREN},
            )
        assert process.stdin is not None
        set_niceness(process.pid, NICENESS)
        while process.poll() is None and not self.done.wait(0.5):
            pass
        set_niceness(process.pid, 0)
        process.stdin.close()
        try:
            code = process.wait(max(0.0, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"it was not ready {LAST:g} s after the end of the training"
        return self._last_line() or f"exit code {code}" if code else ""

    def _last_line(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")

    def _print(self, text: str) -> None:
        log_line(f"{self.label:<10} tracker {self.name} {text}")
