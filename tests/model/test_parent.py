import os
import signal
import subprocess
import sys
import time

CHILD = (
    "import signal, time; from model.parent import die_with_parent; "
    "signal.signal(signal.SIGTERM, lambda *_: print('asked', flush=True)); "
    "die_with_parent({patience}); print('up', flush=True); time.sleep(60); time.sleep(60)"
)


def orphaned(patience: float | None) -> subprocess.Popen:
    """A process whose child takes SIGTERM and goes on; its output is the child's."""
    child = CHILD.format(patience=patience)
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    return subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, start_new_session=True)


def test_process_that_does_not_end_with_its_parent_is_left_after_its_patience() -> None:
    parent = orphaned(1.0)
    assert parent.stdout is not None and parent.stdout.readline() == "up\n"
    os.kill(parent.pid, signal.SIGKILL)
    began = time.monotonic()
    assert parent.stdout.read() == "asked\n"  # to the end of the output, which the child held open
    assert 0.9 < time.monotonic() - began < 30
    parent.wait()


def test_without_patience_it_is_only_asked() -> None:
    parent = orphaned(None)
    assert parent.stdout is not None and parent.stdout.readline() == "up\n"
    os.kill(parent.pid, signal.SIGKILL)
    assert parent.stdout.readline() == "asked\n"
    parent.wait()  # else it is still in its group
    time.sleep(2)
    os.killpg(parent.pid, 0)  # it goes on
    os.killpg(parent.pid, signal.SIGKILL)
    parent.stdout.close()
