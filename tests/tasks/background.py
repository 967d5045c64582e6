"""Functions that tests call in a process of their own; there are no imports that take long."""

import os
import time
from pathlib import Path

from model.figures import CheckpointFigures


def figures(path: str, parameters: int) -> dict[str, CheckpointFigures]:
    assert isinstance(path, str)
    return {path: CheckpointFigures(parameters=parameters)}


def priorities() -> dict[str, int | str]:
    session = Path("/proc/self/autogroup")
    return {
        "nice": os.nice(0),
        "session": session.read_text().split()[-1] if session.is_file() else "19",
        "oom_score_adj": Path("/proc/self/oom_score_adj").read_text().strip(),
    }


def dies_once(path: str) -> CheckpointFigures:
    if not Path(path).exists():
        Path(path).touch()
        os.kill(os.getpid(), 9)
    return CheckpointFigures(parameters=7)


def allocate() -> int:
    """Six gigabytes."""
    return len(bytearray(6_000_000_000))


def meet(mine: str, other: str) -> int:
    """Its own process, once the other one has begun."""
    Path(mine).write_text(str(os.getpid()))
    while not Path(other).exists():
        time.sleep(0.02)
    return os.getpid()


def fail_after(other: str) -> int:
    while not (Path(other).exists() and Path(other).read_text()):
        time.sleep(0.02)
    raise RuntimeError("of this cause")
