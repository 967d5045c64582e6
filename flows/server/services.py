"""Processes that go on after the command that started them: the server, the worker, the pictures."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from model.errors import KodaError
from model.files import is_locked

DYING = 30.0  # seconds that a process may take to go once it was killed: a write has to end first


class Service(NamedTuple):
    """A process that locks a file for as long as it runs, which is how others know that it does."""

    name: str
    folder: Path

    @property
    def lock(self) -> Path:
        return self.folder / f"{self.name}.lock"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def is_running(self) -> bool:
        return is_locked(self.lock)

    def start(self, *command: str) -> None:
        """Start `python -m …` in a session of its own, so that no terminal ends it."""
        with self.lock.open("a+") as lock, self.log.open("ab") as log:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the child inherits the lock with the file
            child = subprocess.Popen(
                [sys.executable, "-m", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[lock.fileno()],
                preexec_fn=_heed_interrupts,
            )
            lock.truncate(0)
            lock.write(str(child.pid))
            lock.flush()

    def stop(self, patience: float) -> bool:
        """Interrupt it, and kill it after so many seconds; False where it was not running. Raises KodaError where no
        signal ends it."""
        if not self.is_running():
            return False
        pid = int(self.lock.read_text())
        self._signal(pid, signal.SIGINT)
        if not self._gone(patience):
            self._signal(-pid, signal.SIGKILL)
            if not self._gone(DYING):
                raise KodaError(f"the {self.name}, process {pid}, does not end; see {self.log}")
        return True

    def _gone(self, patience: float) -> bool:
        deadline = time.monotonic() + patience
        while self.is_running():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        return True

    def children(self) -> list[int]:
        """The processes that it has started and that run; none where the machine has no `ps`."""
        with contextlib.suppress(FileNotFoundError):
            output = subprocess.run(
                ["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True
            ).stdout
            lines = [line.split() for line in output.splitlines()]
            return [int(pid) for pid, parent, state in lines if parent == self.lock.read_text() and state[0] != "Z"]
        return []

    def log_tail(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-1500:] if self.log.is_file() else ""

    @staticmethod
    def _signal(pid: int, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _heed_interrupts() -> None:
    """A shell that starts `koda up &` has it ignore Ctrl-C, and its children would too: no interrupt would end them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
