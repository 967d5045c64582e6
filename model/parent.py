"""A process that must not outlive the one that started it."""

import ctypes
import signal


def die_with_parent() -> None:
    """Have the kernel send SIGTERM when the process that started this one dies (Linux)."""
    pr_set_pdeathsig = 1
    try:
        ctypes.CDLL("libc.so.6").prctl(pr_set_pdeathsig, signal.SIGTERM)
    except OSError:
        return
