"""What a run shows on its page in Prefect: tables and pictures that are kept under a key from one time to the next."""

import os
import re
from pathlib import Path
from typing import Any

from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact

from tasks.runs.paths import root

FILES = "KODA_FILES_URL"  # where the folder of all runs is served; `koda up` serves it, and sets this


def address(path: Path) -> str:
    """Where a browser finds a file of a run; empty where it is not served."""
    served = os.environ.get(FILES, "")
    return f"{served}/{path.absolute().relative_to(root().absolute()).as_posix()}" if served else ""


def key(*parts: str) -> str:
    """An artifact's key: what Prefect allows in one is a-z, 0-9 and dashes.

    >>> key("nightly", "My_run.2")
    'nightly-my-run-2'
    """
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


def table(name: str, rows: list[dict[str, Any]], description: str) -> None:
    """Rows under the names of their columns."""
    create_table_artifact(rows, key=name, description=description)


def picture(name: str, path: Path, description: str) -> None:
    """A picture file of a run; where it is not served, its path as text."""
    if where := address(path):
        create_image_artifact(f"{where}?{path.stat().st_mtime_ns}", key=name, description=description)
    else:
        create_markdown_artifact(f"{description}: `{path}`", key=name, description=description)
