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
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

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

# In the environment of every child: its output is in the log at once, it imports nothing of the current folder, and
# glibc asks for huge pages. XLA allocates its buffers again in each step, and a third of a step on CPUs was the kernel
# mapping them 4 KB at a time (bench/LOG.md).
OF_CHILDREN = {
    "PYTHONUNBUFFERED": "1",
    "PYTHONSAFEPATH": "1",
    "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"),
}

# Signals that a process gets from others. A fault of its own gives SIGSEGV, SIGABRT, SIGBUS, …
SENT = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}

Value = TypeVar("Value")


class Death(StrEnum):
    """Why a process ended that should have gone on."""

    OUTSIDE = "killed from outside"
    MEMORY = "out of memory"
    HANG = "hang"
    DISK = "disk does not answer"
    SIGNAL = "fatal signal"
    ERROR = "error"
    STOPPED = "stopped"
    ROLLED_BACK = "rolled back"


class ProcessFailed(Exception):
    """The process ended in a way that a restart may fix; the message has how, and the end of its log."""

    def __init__(self, what: str, death: Death, how: str, log: Path, tail: str):
        super().__init__(f"{what} {how}. The end of {log}:\n{tail}")
        self.death, self.how = death, how
        self.last_line = next((line.strip() for line in reversed(tail.splitlines()) if line.strip()), "")


def supervise(
    command: list[str],
    log: Path,
    *,
    folder: Path | None = None,
    hang_seconds: float = 300.0,
    peers: Sequence[dict[str, str]] = ({},),
    beside: Sequence[list[str]] = (),
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Run `command` to its end, its output appended to `log`; `folder` is where its heartbeat lies, if it has one.

    A process whose heartbeat is older than `hang_seconds` and than ten of its slowest steps is killed. It runs once for
    each of `peers`, which is what that one has in its environment beside all that this process has; the commands
    `beside` run at the same time. Together they are one, whose heart the first is; where one dies, so do the others.

    Raises KodaError for a configuration that no retry can fix, ProcessFailed for anything else but success. If this
    process is stopped, the children get SIGTERM, and have GRACE seconds to save and leave.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    killed_for_memory = deque([_killed_for_memory()], maxlen=3)  # the last seconds' counts, the oldest first
    with log.open("ab") as output:
        before = output.tell()
        children = [
            subprocess.Popen(
                one,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **OF_CHILDREN, **environment},
            )
            for one, environment in [*((command, peer) for peer in peers), *((other, peers[0]) for other in beside)]
        ]
    watchdog = Watchdog(folder, children[0].pid) if folder is not None else None
    hung: Death | None = None
    try:
        while (codes := [child.poll() for child in children]).count(None) and not any(codes):
            try:
                children[codes.index(None)].wait(0.5)
            except subprocess.TimeoutExpired:
                tick()
                killed_for_memory.append(_killed_for_memory())
                if watchdog is not None and watchdog.hangs(hang_seconds):
                    if hung is None:  # it may take a while to die
                        waits = any(_waits_for_disk(child.pid) for child in children)
                        hung = Death.DISK if waits else Death.HANG
                    _signal(children[0], signal.SIGKILL)
    except BaseException:
        _stop(children, folder)
        raise
    # Of the one that ended first; the others ended because of it, perhaps a moment later.
    code = next((code for code in codes if code and -code in SENT), next(filter(None, codes), DONE))
    if code in (PREEMPTED, ROLLED_BACK):  # which they decide together
        _wait(children, GRACE)
    for child in children:
        _signal(child, signal.SIGKILL)
        child.wait()
    if code != DONE:
        memory = code == -signal.SIGKILL and not hung and _killed_for_memory() > killed_for_memory[0]
        _raise_failure(code, hung, memory, command, log, before)


class Order(Generic[Value]):
    """A call of `package.module:function`; arguments are JSON and paths, the result is a `returns`."""

    def __init__(self, function: str, returns: type[Value], **arguments: Any):
        self.function, self.returns = function, returns
        self.arguments = {name: str(value) if isinstance(value, Path) else value for name, value in arguments.items()}


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
    order = Order(function, returns, **arguments)
    return _call([order], log, environment or {}, background_gb)[0]


def call_several(orders: Sequence[Order[Any]], log: Path, together: bool) -> list[Any]:
    """The results of several calls, each in a process of its own: at the same time, and where one fails so do all; or
    one after another."""
    groups = [orders] if together else [[order] for order in orders]
    return [value for group in groups for value in _call(group, log)]


def _call(
    orders: Sequence[Order[Any]], log: Path, environment: Mapping[str, str] = {}, background_gb: float = 0
) -> list[Any]:
    with tempfile.TemporaryDirectory() as scratch:
        results = [Path(scratch) / f"result{number}.json" for number in range(len(orders))]
        files = [Path(scratch) / f"call{number}.json" for number in range(len(orders))]
        for order, file, result in zip(orders, files, results, strict=True):
            write_json(
                file,
                {
                    "function": order.function,
                    "arguments": order.arguments,
                    "result": str(result),
                    "background_gb": background_gb,
                },
            )
        first, *others = ([sys.executable, "-m", "model.call", str(file)] for file in files)
        supervise(first, log, peers=[{**environment}], beside=others)
        return [typed(order.returns, read_json(result)) for order, result in zip(orders, results, strict=True)]


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


def _killed_for_memory() -> int:
    """How many processes the kernel has killed because there was no memory left; 0 where it does not say."""
    try:
        counts = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
        return int(counts.get("oom_kill", 0))
    except (OSError, ValueError):
        return 0


def _waits_for_disk(pid: int) -> bool:
    """Is a thread of the process in a system call that nothing can interrupt? Reads and writes are, of a disk or of a
    file system in the network; a GPU's driver has some too."""
    states = []
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):
            states.append(stat.read_text().rpartition(")")[2].split()[0])
    return "D" in states


def _raise_failure(code: int, hung: Death | None, memory: bool, command: list[str], log: Path, before: int) -> NoReturn:
    with log.open("rb") as file:
        file.seek(before)  # the output of earlier attempts is not this one's cause
        tail = file.read().decode(errors="replace").strip()[-3000:]
    if disk_full(OSError(tail)):
        raise KodaError(f"the disk is full: {log} has what could not be written. Make room; the same command goes on.")
    if code == UNUSABLE:
        message = tail.rpartition("koda: ")[2]
        raise KodaError(message or f"{' '.join(command[1:4])} refused its configuration; see {log}")
    death, how = _judged(code, hung, memory)
    raise ProcessFailed(" ".join(command[1:4]), death, how, log, tail)


def _judged(code: int, hung: Death | None, memory: bool) -> tuple[Death, str]:
    """Why a process ended with this exit code, and how to say it."""
    if hung:
        waited = ", while it waited for a disk" if hung is Death.DISK else ""
        return hung, f"gave no heartbeat and was killed{waited}"
    if memory:
        return Death.MEMORY, "was killed by the kernel, which had no memory left"
    if code == PREEMPTED:
        return Death.STOPPED, "was stopped, and saved"
    if code == ROLLED_BACK:
        return Death.ROLLED_BACK, "had bad steps and goes back to its last checkpoint"
    if code >= 0:
        return Death.ERROR, f"ended with exit code {code}"
    number = signal.Signals(-code)
    if number in SENT:
        return Death.OUTSIDE, f"was killed by {number.name}, from outside"
    return Death.SIGNAL, f"was killed by {number.name}"
