"""How much a process yields the processors to others."""

import contextlib
import os
from pathlib import Path


def set_niceness(pid: int, niceness: int) -> None:
    """From 0 to 19, for a process that leads its session: Linux shares processors among sessions first."""
    with contextlib.suppress(OSError):  # it may have ended; and to take it back may need root
        os.setpriority(os.PRIO_PROCESS, pid, niceness)
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(niceness))
