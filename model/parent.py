"""A process that must not outlive the one that started it."""

import ctypes
import os
import signal
import threading
import time


def die_with_parent(patience: float | None = None) -> None:
    """Have the kernel send SIGTERM when the process that started this one dies (Linux).

    With `patience`, a process that has not ended so many seconds after that is left without a further word: what
    SIGTERM raises can be lost in a library, or a thread that waits for a dead server keeps the interpreter.
    """
    pr_set_pdeathsig = 1
    parent = os.getppid()
    try:
        ctypes.CDLL("libc.so.6").prctl(pr_set_pdeathsig, signal.SIGTERM)
    except OSError:
        return
    if patience is not None:
        threading.Thread(target=_leave_without, args=(parent, patience), daemon=True).start()


def _leave_without(parent: int, patience: float) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    time.sleep(patience)
    os._exit(1)
