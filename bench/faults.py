"""What can happen to a training, and how `bench/chaos.py` makes it happen.

A fault returns the step that the training survived to, or None where the training has to restart.
"""

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import small_disk

if TYPE_CHECKING:
    from chaos import Training

SILENCE = 120.0  # seconds without Prefect's API
LOCKED = 60.0  # seconds in which nobody else can write to Prefect's database
DISK_HANGS = 20.0  # seconds
CLOCK = 60.0  # seconds after the clock was set, in which Prefect could take the run for lost
MEMORY = 512 << 20  # bytes that the group of the training may take
GROUPS = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")  # of cgroups, version 1 and 2
CLOCK_SOURCE = Path(__file__).parent / "chaos_site/clock.c"


def kill(training: "Training") -> None:
    training.kill()


def hang(training: "Training") -> None:
    training.kill(signal.SIGSTOP)


def terminate(training: "Training") -> None:
    training.kill(signal.SIGTERM)


def kill_in_save(training: "Training") -> None:
    before = training.beat()["pid"]
    (training.faults / "in-save").touch()
    training.require(lambda: not (training.faults / "in-save").exists() or training.beat()["pid"] != before, "a save")


def exhaust_memory(training: "Training") -> None:
    """The training is in a group of processes that may take little memory, and takes more: the kernel kills it."""
    group = memory_group(f"koda-chaos-{os.getpid()}")
    assert group is not None
    limit = group / ("memory.limit_in_bytes" if (group / "memory.limit_in_bytes").exists() else "memory.max")
    limit.write_text(str(MEMORY))
    pid = training.beat()["pid"]
    (group / "cgroup.procs").write_text(str(pid))
    (training.faults / "memory").write_text(str(2 * MEMORY))
    try:
        training.require(lambda: training.beat()["pid"] != pid, "the kernel's kill")
    finally:
        (training.faults / "memory").unlink(missing_ok=True)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        training.require(lambda: not (group / "cgroup.procs").read_text(), "the end of the group's process", 10)
        group.rmdir()


def memory_group(name: str) -> Path | None:
    """A new group of processes whose memory can be limited; None where this process cannot make one."""
    for root in GROUPS:
        group = root / name
        with contextlib.suppress(OSError):
            group.mkdir()
            if any((group / limit).exists() for limit in ("memory.limit_in_bytes", "memory.max")):
                return group
            group.rmdir()
    return None


def can_limit_memory() -> bool:
    if group := memory_group(f"koda-chaos-{os.getpid()}-probe"):
        group.rmdir()
    return group is not None


def flip_in_memory(training: "Training") -> int:
    """One bit of a weight, in the memory of the training, which computes the steps around it twice."""
    from model.training.records import Event, read_events

    def found() -> int:
        return sum(record.event is Event.WRONG_BITS for record in read_events(training.training))

    before = found()
    training.newest()  # there is a checkpoint to compute again from
    (training.faults / "flip").touch()
    training.require(lambda: found() > before, "the discovery of the flipped bit")
    return training.beat()["step"]


def flip_on_disk(training: "Training") -> None:
    path = training.largest()
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    training.kill()


def cut(training: "Training") -> None:
    path = training.largest()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    training.kill()


def uncommit(training: "Training") -> None:
    (training.newest() / "COMMIT.json").unlink()
    training.kill()


def delete_checkpoints(training: "Training") -> None:
    """All that were saved here; there is a copy of the newest, or of one before it."""
    training.require(lambda: training.copied() >= 0, "a copy")
    training.kill()
    shutil.rmtree(training.training / "checkpoints")


def lose_the_second_place(training: "Training") -> int:
    """It takes no copies for a while: the training continues, and is copied again once it does."""
    aside = training.folder / "aside"
    training.require(lambda: training.copied() >= 0, "a copy")
    training.copies.rename(aside)
    training.copies.touch()  # no folder, so that nothing can be written below it
    time.sleep(10)
    training.copies.unlink()
    aside.rename(training.copies)
    reached = training.beat()["step"]
    training.require(lambda: training.copied() > reached, "a copy of a later step")
    return reached


def nan(training: "Training") -> None:
    """As many batches as it takes, a little way ahead, give NaN; the training skips them after a restart."""
    from model.training.bad_steps import BAD_STEPS
    from model.training.records import WINDOWS

    windows = training.training / WINDOWS
    before = json.loads(windows.read_text()) if windows.is_file() else []
    first = training.beat()["step"] + sum(count for _, count in before) + 30
    (training.faults / "nan").write_text(json.dumps([first, first + BAD_STEPS]))
    training.require(lambda: windows.is_file() and len(json.loads(windows.read_text())) > len(before), "a rollback")


def fill_the_disk(training: "Training") -> int:
    """The disk is full for a while: saves fail, the training continues, and it saves again once there is room."""
    ballast, newest = training.runs / "ballast", -1
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)
    while newest != (newest := int(training.newest().name)):  # a save that had begun may still fit
        time.sleep(2)
    ballast.unlink()
    reached = training.beat()["step"]
    training.require(lambda: int(training.newest().name) > reached, "a save with room")
    return reached


def hang_the_disk(training: "Training") -> None:
    """No write ends for longer than `hang_seconds`: the training counts as hung, and dies once the disk replies."""
    small_disk.hang(training.runs, DISK_HANGS)


def slow_the_disk(training: "Training") -> int:
    """For a while each write takes half a second; the training waits for its disk, and goes on."""
    deadline = time.monotonic() + DISK_HANGS
    while time.monotonic() < deadline:
        small_disk.hang(training.runs, 0.5)
        time.sleep(0.1)
    return training.beat()["step"]


def build_clock(library: Path) -> bool:
    """Compile what sets the clock of the processes that preload it; False where there is no C compiler."""
    command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(CLOCK_SOURCE), "-ldl"]
    return shutil.which("cc") is not None and subprocess.run(command, capture_output=True).returncode == 0


def can_set_the_clock() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        return build_clock(Path(folder) / "clock.so")


def set_the_clock(training: "Training", hours: int) -> int:
    """The clock of all processes jumps: the training continues, and no one takes it for lost."""
    before = training.restarts()
    training.set_clock(hours)
    time.sleep(CLOCK)
    if training.restarts() != before:
        raise RuntimeError("the training was restarted because the clock was set")
    return training.beat()["step"]


def set_the_clock_forward(training: "Training") -> int:
    return set_the_clock(training, 1)


def set_the_clock_back(training: "Training") -> int:
    return set_the_clock(training, -1)


def silence_the_api(training: "Training") -> int:
    """The Prefect server does not reply for a while: the training continues, and so does the run."""
    server = training.server()
    os.kill(server, signal.SIGSTOP)
    time.sleep(SILENCE)
    os.kill(server, signal.SIGCONT)
    return training.beat()["step"]


def lock_the_database(training: "Training") -> int:
    """Somebody holds the lock on the server's SQLite file: the training continues, and so does the run."""
    database = sqlite3.connect(training.folder / "prefect/prefect.db", timeout=60, isolation_level=None)
    with contextlib.closing(database):
        database.execute("BEGIN EXCLUSIVE")
        time.sleep(LOCKED)
        database.execute("ROLLBACK")
    return training.beat()["step"]


def kill_the_flow(training: "Training") -> None:
    os.kill(training.flow(), signal.SIGKILL)


def kill_everything(training: "Training") -> None:
    """Worker, flow and trainer at once; the server, a service of its own, survives. Then `koda up` again."""
    server = training.server()
    for pid in training.processes():
        if pid != server:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    training.koda("up")


def kill_koda_run(training: "Training") -> None:
    """`koda run`, to which its Prefect server and the training belong. Then the same command again."""
    training.koda_run.kill()
    training.koda_run.wait()
    training.launch()


def anywhere() -> bool:
    return True


class Fault(NamedTuple):
    inject: Callable[["Training"], int | None]
    possible: Callable[[], bool] = anywhere  # on this machine
    steps: int = 0  # that a training makes meanwhile, about
    plain: bool = True  # can it happen to a plain `koda run`?
    up: bool = True  # can it happen under `koda up`?


FAULTS = {
    "SIGKILL": Fault(kill),
    "SIGSTOP (a hang)": Fault(hang),
    "SIGTERM": Fault(terminate),
    "SIGKILL during a save": Fault(kill_in_save),
    "out of memory": Fault(exhaust_memory, can_limit_memory),
    "a bit flipped in memory": Fault(flip_in_memory),
    "a byte flipped on disk": Fault(flip_on_disk),
    "newest cut short": Fault(cut),
    "commit file removed": Fault(uncommit),
    "checkpoints deleted": Fault(delete_checkpoints),
    "second place away": Fault(lose_the_second_place),
    "NaN in five batches": Fault(nan),
    "full disk": Fault(fill_the_disk, small_disk.available),
    "disk hangs for 20 s": Fault(hang_the_disk, small_disk.available),
    "slow disk": Fault(slow_the_disk, small_disk.available, 500),
    "clock set forward an hour": Fault(set_the_clock_forward, can_set_the_clock, 9_000),
    "clock set back an hour": Fault(set_the_clock_back, can_set_the_clock, 9_000),
    "API silent for 2 min": Fault(silence_the_api, steps=18_000, plain=False),
    "database locked for 1 min": Fault(lock_the_database, steps=9_000, plain=False),
    "SIGKILL of the flow": Fault(kill_the_flow, plain=False),
    "SIGKILL of worker and all": Fault(kill_everything, plain=False),
    "SIGKILL of koda run": Fault(kill_koda_run, up=False),
}
