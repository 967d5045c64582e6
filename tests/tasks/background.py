"""What a process in the background is asked by test_nightly.py; it imports nothing that would take it long."""

import os
from pathlib import Path


def place() -> dict:
    return {"nice": os.nice(0), "first to go": Path("/proc/self/oom_score_adj").read_text().strip()}


def swell() -> int:
    return len(bytearray(6_000_000_000))
