"""Start a process, watch it, and decide by its end what comes next. The one way this project runs JAX under a flow.

The flow's own process imports no JAX: a crash, a segfault or the OOM killer then takes the child only. Its output goes
to a file, never a pipe, so that it outlives whoever reads.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from model.errors import KodaError
from model.exit_codes import DONE, PREEMPTED, ROLLED_BACK, UNUSABLE
from model.files import disk_full, read_json, write_json
from model.training.heartbeat import Heartbeat
from tasks.typed import typed

GRACE = 20.0  # seconds to save and leave after SIGTERM; Prefect kills the flow after 30
# Seconds without a beat after which a process counts as hung, by its phase. While it trains, its own
# pace decides: `hang_seconds` of its settings, and ten of its slowest steps.
PATIENCE = {"start": 600.0, "compile": 1800.0, "save": 1800.0, "evaluate": 1800.0}
SLOWEST = 10.0


Value = TypeVar("Value")


class ProcessFailed(Exception):
    """The process ended in a way that a restart may fix; the message has how, and the end of its log."""

    def __init__(self, what: str, how: str, log: Path, tail: str):
        super().__init__(f"{what} {how}. The end of {log}:\n{tail}")
        self.how = how


def supervise(
    command: list[str],
    log: Path,
    *,
    folder: Path | None = None,
    hang_seconds: float = 300.0,
    peers: Sequence[dict[str, str]] = ({},),
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Run `command` to its end, its output appended to `log`; `folder` is where its heartbeat lies, if it has one.

    A process whose heartbeat is older than `hang_seconds` and than ten of its slowest steps is killed. It runs once for
    each of `peers`, which is what that one has in its environment beside all that this process has: together they are
    one, whose heart the first is, and where one dies, so do the others.

    Raises KodaError for a configuration that no retry can fix, ProcessFailed for anything else but success. If this
    process is stopped, the children get SIGTERM, and have GRACE seconds to save and leave.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        before = output.tell()
        children = [
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1", **environment},
            )
            for environment in peers
        ]
    watchdog = Watchdog(folder, children[0].pid) if folder is not None else None
    hung = False
    try:
        while (codes := [child.poll() for child in children]).count(None) and not any(codes):
            try:
                children[codes.index(None)].wait(0.5)
            except subprocess.TimeoutExpired:
                tick()
                if watchdog is not None and watchdog.hangs(hang_seconds):
                    hung = True
                    _signal(children[0], signal.SIGKILL)
    except BaseException:
        _stop(children, folder)
        raise
    code = next(filter(None, codes), DONE)  # of the one that ended first; the others ended because of it
    if code in (PREEMPTED, ROLLED_BACK):  # which they decide together
        _wait(children, GRACE)
    for child in children:
        _signal(child, signal.SIGKILL)
        child.wait()
    _raise_failure(code, hung, command, log, before)


def call(
    function: str,
    log: Path,
    returns: type[Value],
    *,
    environment: dict[str, str] | None = None,
    background_gb: float = 0,
    **arguments: Any,
) -> Value:
    """Call `package.module:function` in a process of its own; arguments are JSON and paths, the result is a `returns`.

    `background_gb`: the process yields to all others and takes so much memory at most; 0: it is like any other.
    """
    with tempfile.TemporaryDirectory() as scratch:
        order, result = Path(scratch) / "call.json", Path(scratch) / "result.json"
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in arguments.items()}
        write_json(
            order,
            {
                "function": function,
                "arguments": plain,
                "result": str(result),
                "background_gb": background_gb,
            },
        )
        supervise([sys.executable, "-m", "model.call", str(order)], log, peers=[environment or {}])
        return typed(returns, read_json(result))


class Watchdog:
    """Decides whether a process hangs, by its heartbeat and a clock that stops while the machine sleeps."""

    def __init__(self, folder: Path, pid: int):
        self.folder, self.pid = folder, pid
        self.last, self.since = 0.0, time.monotonic()

    def hangs(self, hang_seconds: float) -> bool:
        """Was the last beat longer ago than the current phase can take?"""
        beat = Heartbeat.read(self.folder)
        if beat is None or beat["pid"] != self.pid:
            return time.monotonic() - self.since > PATIENCE["start"]
        if beat["time"] != self.last:
            self.last, self.since = beat["time"], time.monotonic()
        training = max(hang_seconds, SLOWEST * beat["pace"])
        return time.monotonic() - self.since > PATIENCE.get(beat["phase"], training)


def _signal(child: subprocess.Popen, number: signal.Signals) -> None:
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)


def _wait(children: list[subprocess.Popen], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(child.poll() is None for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)


def _stop(children: list[subprocess.Popen], folder: Path | None) -> None:
    """Stop the children, which save and leave. A child that is still saving after GRACE seconds is left to finish, and
    the others with it: they have sessions of their own, and the lock on their folder keeps the next one waiting. Else
    all are killed.
    """
    for child in children:
        _signal(child, signal.SIGTERM)
    _wait(children, GRACE)
    beat = Heartbeat.read(folder) if folder is not None else None
    if beat is None or beat["pid"] != children[0].pid or beat["phase"] != "save":
        for child in children:
            _signal(child, signal.SIGKILL)


def _raise_failure(code: int, hung: bool, command: list[str], log: Path, before: int) -> None:
    if code == DONE:
        return
    with log.open("rb") as file:
        file.seek(before)  # the output of earlier attempts is not this one's cause
        tail = file.read().decode(errors="replace").strip()[-3000:]
    if disk_full(OSError(tail)):
        raise KodaError(f"the disk is full: {log} has what could not be written. Make room; the same command goes on.")
    if code == UNUSABLE:
        message = tail.rpartition("koda: ")[2]
        raise KodaError(message or f"{' '.join(command[1:4])} refused its configuration; see {log}")
    if hung:
        how = "gave no heartbeat and was killed"
    elif code == PREEMPTED:
        how = "was stopped, and saved"
    elif code == ROLLED_BACK:
        how = "had bad steps and goes back to its last checkpoint"
    elif code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
    else:
        how = f"ended with exit code {code}"
    raise ProcessFailed(" ".join(command[1:4]), how, log, tail)
