import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from model.errors import KodaError
from model.figures import CheckpointFigures, EndingFigures
from model.training.heartbeat import Heartbeat
from tasks import supervise as supervising
from tasks.supervise import Death, Order, ProcessFailed, Watchdog, call, call_several, supervise


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_output_goes_to_the_log_and_success_is_silent(tmp_path: Path) -> None:
    supervise(python("print('first')"), tmp_path / "log")
    supervise(python("print('second')"), tmp_path / "log")
    assert (tmp_path / "log").read_text() == "first\nsecond\n"


@pytest.mark.parametrize(
    ("code", "death", "message"),
    [
        ("import os; os.kill(os.getpid(), 9)", Death.OUTSIDE, "killed by SIGKILL, from outside"),
        ("import ctypes; ctypes.string_at(0)", Death.SIGNAL, "killed by SIGSEGV"),
        ("import os; os.abort()", Death.SIGNAL, "killed by SIGABRT"),
        ("raise RuntimeError('of this cause')", Death.ERROR, "(?s)exit code 1.*of this cause"),
        ("raise SystemExit(75)", Death.STOPPED, "was stopped, and saved"),
        ("raise SystemExit(76)", Death.ROLLED_BACK, "goes back to its last checkpoint"),
    ],
)
def test_end_of_a_process_is_reported_with_its_cause(tmp_path: Path, code: str, death: Death, message: str) -> None:
    with pytest.raises(ProcessFailed, match=message) as failed:
        supervise(python(code), tmp_path / "log")
    assert failed.value.death is death
    assert failed.value.last_line == ("RuntimeError: of this cause" if death is Death.ERROR else "")


def test_kill_while_the_kernel_killed_for_memory_is_no_kill_from_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = iter((3, 4))
    monkeypatch.setattr(supervising, "_killed_for_memory", lambda: next(counts))
    with pytest.raises(ProcessFailed, match="no memory left") as failed:
        supervise(python("import os; os.kill(os.getpid(), 9)"), tmp_path / "log")
    assert failed.value.death is Death.MEMORY


def test_configuration_that_no_retry_can_fix_is_an_error_of_its_own(tmp_path: Path) -> None:
    code = "import sys; print('koda: runs/x is wrong.\\nDo this.', file=sys.stderr); sys.exit(78)"
    with pytest.raises(KodaError, match=r"^runs/x is wrong\.\nDo this\.$"):
        supervise(python(code), tmp_path / "log")


def test_function_is_called_in_another_process(tmp_path: Path) -> None:
    theta = call("model.stretch:ntk_theta", tmp_path / "log", float, theta=10000.0, factor=2.0, head_dim=64)
    assert theta == pytest.approx(20452.2, abs=0.1)


@pytest.mark.parametrize("shadow", ["model.py", "model/__init__.py", "random.py", "json.py"])
def test_file_of_the_current_folder_is_imported_by_no_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shadow: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(shadow).parent.mkdir(exist_ok=True)
    Path(shadow).write_text("raise ImportError")
    assert call("model.stretch:ntk_theta", tmp_path / "log", float, theta=10000.0, factor=1.0, head_dim=64) == 10000


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not HUGE_PAGES.is_file() or "[never]" in HUGE_PAGES.read_text(), reason="this kernel gives no huge pages"
)
def test_memory_that_a_child_takes_again_and_again_is_not_mapped_page_by_page(tmp_path: Path) -> None:
    """As XLA does in each step: 20 times 64 MB are 330,000 pages of 4 KB."""
    code = """
import ctypes, resource
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
for _ in range(20):
    block = libc.malloc(64_000_000)
    ctypes.memset(block, 1, 64_000_000)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""
    supervise(python(code), tmp_path / "log")
    assert int((tmp_path / "log").read_text()) < 100_000


def test_call_returns_what_the_function_returned(tmp_path: Path) -> None:
    """A dataclass in a container; a path is a text on the other side, and figures of another kind are refused."""
    function, path = "tests.tasks.background:figures", Path("weights")
    returned = call(function, tmp_path / "log", dict[str, CheckpointFigures], path=path, parameters=7)
    assert returned == {"weights": CheckpointFigures(parameters=7)}
    with pytest.raises(ValueError, match="asked"):
        call(function, tmp_path / "log", dict[str, EndingFigures], path=path, parameters=7)


def meeting(place: Path, mine: str, other: str) -> Order[int]:
    return Order("tests.tasks.background:meet", int, mine=place / mine, other=place / other)


def test_calls_made_together_run_at_the_same_time_and_return_in_order(tmp_path: Path) -> None:
    """Each waits for the other to have begun."""
    returned = call_several([meeting(tmp_path, "a", "b"), meeting(tmp_path, "b", "a")], tmp_path / "log", together=True)
    assert returned == [int((tmp_path / name).read_text()) for name in "ab"] and len({*returned}) == 2


def test_calls_made_one_after_another_return_in_order(tmp_path: Path) -> None:
    """The second one needs that the first one has begun, and the first one needs nobody."""
    (tmp_path / "b").write_text("")
    orders = [meeting(tmp_path, "a", "b"), meeting(tmp_path, "c", "a")]
    first, second = call_several(orders, tmp_path / "log", together=False)
    assert first == int((tmp_path / "a").read_text()) and second == int((tmp_path / "c").read_text())
    assert (tmp_path / "a").stat().st_mtime < (tmp_path / "c").stat().st_mtime


def test_calls_made_together_end_with_the_one_that_fails(tmp_path: Path) -> None:
    """The other one waits for one that never begins."""
    orders = [meeting(tmp_path, "a", "never"), Order("tests.tasks.background:fail_after", int, other=tmp_path / "a")]
    with pytest.raises(ProcessFailed, match=r"(?s)exit code 1.*of this cause"):
        call_several(orders, tmp_path / "log", together=True)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "a").read_text()), 0)


def test_silence_is_a_hang(tmp_path: Path) -> None:
    """A process that stops beating is killed, and reported as one without a heartbeat."""
    code = f"""
import os, time
from pathlib import Path
from model.training.heartbeat import Heartbeat
Heartbeat(Path({str(tmp_path)!r}), 0.0).beat("train", 1)
os.kill(os.getpid(), 19)  # SIGSTOP
"""
    began = time.monotonic()
    with pytest.raises(ProcessFailed, match="gave no heartbeat and was killed") as failed:
        supervise(python(code), tmp_path / "log", folder=tmp_path, hang_seconds=2.0)
    assert failed.value.death is Death.HANG
    assert time.monotonic() - began < 15


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_hang_of_a_process_that_waits_for_a_disk_is_told_from_others(tmp_path: Path) -> None:
    """As one that writes to a disk that hangs, the parent in a vfork cannot be interrupted until its child ends."""
    code = f"""
import ctypes, time
from pathlib import Path
from model.training.heartbeat import Heartbeat
Heartbeat(Path({str(tmp_path)!r}), 0.0).beat("train", 1)
c = ctypes.CDLL(None)
if c.vfork() == 0:
    time.sleep(6); c._exit(0)
"""
    with pytest.raises(ProcessFailed, match="while it waited for a disk") as failed:
        supervise(python(code), tmp_path / "log", folder=tmp_path, hang_seconds=2.0)
    assert failed.value.death is Death.DISK


def test_stopped_supervisor_stops_its_child_and_waits(tmp_path: Path) -> None:
    """SIGTERM to the supervising process reaches the child, which saves before both are gone."""
    child = f"""
import signal, sys, time
from pathlib import Path
def leave(*_):
    time.sleep(1); Path({str(tmp_path / "saved")!r}).write_text("saved"); sys.exit(75)
signal.signal(signal.SIGTERM, leave)
Path({str(tmp_path / "ready")!r}).write_text("")
while True: time.sleep(0.1)
"""
    parent = f"""
import signal, sys
from pathlib import Path
from tasks.supervise import supervise
def end(*_): raise KeyboardInterrupt
signal.signal(signal.SIGTERM, end)
supervise([sys.executable, "-c", {child!r}], Path({str(tmp_path / "log")!r}))
"""
    process = subprocess.Popen(python(parent), stderr=subprocess.DEVNULL)
    while not (tmp_path / "ready").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    assert (tmp_path / "saved").read_text() == "saved"


def test_full_disk_is_reported_as_such(tmp_path: Path) -> None:
    code = "raise OSError(28, 'No space left on device')"
    with pytest.raises(KodaError, match="the disk is full"):
        supervise(python(code), tmp_path / "log")
    with pytest.raises(ProcessFailed):  # the output of an earlier attempt is not this one's cause
        supervise(python("raise RuntimeError"), tmp_path / "log")


def test_slow_steps_are_no_hang_and_neither_is_a_machine_that_slept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training whose steps take two seconds may be silent for twenty, whatever the setting."""
    heart, clock = Heartbeat(tmp_path, 0.0), [0.0]
    monkeypatch.setattr("tasks.supervise.time.monotonic", lambda: clock[0])
    for pace, silence, hung in ((0.0, 4, False), (0.0, 6, True), (2.0, 19, False), (2.0, 21, True)):
        heart.beat("train", 1)
        beat = {**json.loads(heart.path.read_text()), "pace": pace}
        heart.path.write_text(json.dumps(beat))
        os.utime(heart.path, (0, 0))  # hours ago by the wall clock
        watchdog = Watchdog(tmp_path, beat["pid"])
        assert not watchdog.hangs(hang_seconds=5.0)
        clock[0] += silence
        assert watchdog.hangs(hang_seconds=5.0) is hung


def test_pace_is_that_of_the_slow_steps(tmp_path: Path) -> None:
    heart = Heartbeat(tmp_path, time.time())
    for step in range(40):
        time.sleep(0.05 if step % 10 == 9 else 0.001)
        heart.beat("train", step)
    assert 0.04 < heart.pace() < 0.5


def test_child_that_is_still_saving_is_left_to_finish(tmp_path: Path) -> None:
    """It was stopped and is writing a large checkpoint; the supervisor leaves, and the save ends."""
    child = f"""
import signal, sys, time
from pathlib import Path
from model.training.heartbeat import Heartbeat
def leave(*_):
    Heartbeat(Path({str(tmp_path)!r}), 0.0).beat("save", 7)
    time.sleep(6); Path({str(tmp_path / "saved")!r}).write_text("saved"); sys.exit(75)
signal.signal(signal.SIGTERM, leave)
Path({str(tmp_path / "ready")!r}).write_text("")
while True: time.sleep(0.1)
"""
    parent = f"""
import signal, sys
from pathlib import Path
from tasks import supervise
supervise.GRACE = 2.0
def end(*_): raise KeyboardInterrupt
signal.signal(signal.SIGTERM, end)
supervise.supervise([sys.executable, "-c", {child!r}], Path({str(tmp_path / "log")!r}), folder=Path({str(tmp_path)!r}))
"""
    process = subprocess.Popen(python(parent), stderr=subprocess.DEVNULL)
    while not (tmp_path / "ready").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    assert not (tmp_path / "saved").exists()
    deadline = time.monotonic() + 30
    while not (tmp_path / "saved").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
