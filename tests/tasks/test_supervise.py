import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from model.errors import KodaError
from model.training.protocol import Heartbeat, event
from tasks.supervise import ProcessFailed, Pulse, call, supervise
from tasks.train import WITHOUT_PROGRESS, _spend


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_output_goes_to_the_log_and_success_is_silent(tmp_path: Path) -> None:
    supervise(python("print('hello')"), tmp_path / "log")
    supervise(python("print('again')"), tmp_path / "log")
    assert (tmp_path / "log").read_text() == "hello\nagain\n"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("import ctypes; ctypes.string_at(0)", "killed by SIGSEGV"),
        ("raise RuntimeError('so it goes')", "(?s)exit code 1.*so it goes"),
        ("raise SystemExit(75)", "told to stop, and saved"),
    ],
)
def test_how_it_ended_is_said(tmp_path: Path, code: str, message: str) -> None:
    with pytest.raises(ProcessFailed, match=message):
        supervise(python(code), tmp_path / "log")


def test_a_configuration_no_retry_can_mend(tmp_path: Path) -> None:
    code = "import sys; print('koda: runs/x is wrong.\\nDo this.', file=sys.stderr); sys.exit(78)"
    with pytest.raises(KodaError, match=r"^runs/x is wrong\.\nDo this\.$"):
        supervise(python(code), tmp_path / "log")


def test_a_function_runs_elsewhere(tmp_path: Path) -> None:
    found = call("model.rope:ntk_theta", tmp_path / "log", theta=10000.0, factor=2.0, head_dim=64)
    assert found == pytest.approx(20452.2, abs=0.1)


def test_silence_is_a_hang(tmp_path: Path) -> None:
    """A process that stops beating is killed, and said to have hung."""
    code = f"""
import os, time
from pathlib import Path
from model.training.protocol import Heartbeat
Heartbeat(Path({str(tmp_path)!r}), 0.0).beat("train", 1)
os.kill(os.getpid(), 19)  # SIGSTOP
"""
    began = time.monotonic()
    with pytest.raises(ProcessFailed, match="no sign of life"):
        supervise(python(code), tmp_path / "log", folder=tmp_path, hang_seconds=2.0)
    assert time.monotonic() - began < 15


def test_who_is_told_to_end_tells_the_child_and_waits(tmp_path: Path) -> None:
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


def test_lives_without_progress_are_counted(tmp_path: Path) -> None:
    for _ in range(WITHOUT_PROGRESS):
        _spend(tmp_path)
    with pytest.raises(KodaError, match=f"died {WITHOUT_PROGRESS} times at step 0"):
        _spend(tmp_path)
    _spend(tmp_path)  # whoever starts it again has a new budget


def test_a_life_that_rolled_back_counts_as_one(tmp_path: Path) -> None:
    for _ in range(WITHOUT_PROGRESS):
        _spend(tmp_path)
        for step in range(1, 6):
            event(tmp_path, "skipped", step)
        event(tmp_path, "rollback", 0)
    with pytest.raises(KodaError, match="smaller learning_rate"):
        _spend(tmp_path)


def test_a_full_disk_is_told_apart(tmp_path: Path) -> None:
    code = "raise OSError(28, 'No space left on device')"
    with pytest.raises(KodaError, match="the disk is full"):
        supervise(python(code), tmp_path / "log")
    with pytest.raises(ProcessFailed):  # what an earlier life said is not this one's cause
        supervise(python("raise RuntimeError"), tmp_path / "log")


def test_lives_with_progress_are_not(tmp_path: Path) -> None:
    for step in range(5 * WITHOUT_PROGRESS):
        commit = tmp_path / "checkpoints" / str(step) / "COMMIT.json"
        commit.parent.mkdir(parents=True)
        commit.write_text(json.dumps({}))
        _spend(tmp_path)


def test_slow_steps_are_no_hang_and_neither_is_a_machine_that_slept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training whose steps take two seconds may be silent for twenty, whatever the setting says."""
    heart, clock = Heartbeat(tmp_path, 0.0), [0.0]
    monkeypatch.setattr("tasks.supervise.time.monotonic", lambda: clock[0])
    for pace, silence, hung in ((0.0, 4, False), (0.0, 6, True), (2.0, 19, False), (2.0, 21, True)):
        heart.beat("train", 1)
        told = {**json.loads(heart.path.read_text()), "pace": pace}
        heart.path.write_text(json.dumps(told))
        os.utime(heart.path, (0, 0))  # hours ago by the clock on the wall
        pulse = Pulse(tmp_path, told["pid"])
        assert not pulse.stopped(hang_seconds=5.0)
        clock[0] += silence
        assert pulse.stopped(hang_seconds=5.0) is hung


def test_the_pace_is_that_of_the_slow_steps(tmp_path: Path) -> None:
    heart = Heartbeat(tmp_path, time.time())
    for step in range(40):
        time.sleep(0.05 if step % 10 == 9 else 0.001)
        heart.beat("train", step)
    assert 0.04 < heart.pace() < 0.5


def test_a_child_that_is_still_saving_is_left_to_finish(tmp_path: Path) -> None:
    """It was told to stop and is writing a large checkpoint; the flow goes, the save ends."""
    child = f"""
import signal, sys, time
from pathlib import Path
from model.training.protocol import Heartbeat
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
