"""What a process in the background is asked by test_nightly.py; it imports nothing that would take it long."""

import os
from pathlib import Path


def place() -> dict:
    session = Path("/proc/self/autogroup")
    return {
        "nice": os.nice(0),
        "session": session.read_text().split()[-1] if session.is_file() else "19",
        "first to go": Path("/proc/self/oom_score_adj").read_text().strip(),
    }


def swell() -> int:
    return len(bytearray(6_000_000_000))
