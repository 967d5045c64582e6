"""A run's folder is worked on by one process at a time."""

from pathlib import Path
from typing import IO

from model.files import lock_file

LOCK = ".lock"  # in the locked folder


def lock(folder: Path, what: str) -> IO[str]:
    """Lock a folder for the flow run of this process, whose ID the lock file names (`flows/check.py` looks for it)."""
    known_as = f"flow run {number}" if (number := flow_run_id()) else ""
    return lock_file(folder / LOCK, what, known_as=known_as)  # waits a second: `koda status` looks too


def flow_run_id() -> str:
    """The ID of Prefect's run that this process is; empty outside of any."""
    from prefect.runtime import flow_run  # here, so that `koda status` starts in a moment

    return flow_run.id or ""
