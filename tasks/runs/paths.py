"""Where runs lie, what they may be called, and the stages that they go through."""

import os
import re
from pathlib import Path

from model.errors import KodaError
from model.figures import STAGES as FIGURES

STAGES = tuple(FIGURES)  # in their order
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"  # of a run


def root() -> Path:
    """The folder of all runs: `runs` in the current folder, or KODA_RUNS."""
    return Path(os.environ.get("KODA_RUNS", "runs"))


def folder_of(name: str) -> Path:
    """The folder of a run. Raises KodaError for a name that would lie anywhere else."""
    if not re.fullmatch(NAME, name):
        raise KodaError(
            f"--name {name!r} cannot be a run's name: letters, digits, '.', '_' and '-', up to 64, "
            "beginning with a letter or digit."
        )
    return root() / name


def existing(name: str) -> Path:
    """The folder of a run that has begun. Raises KodaError where there is none."""
    folder = folder_of(name)
    if not (folder / "run.toml").is_file():
        raise KodaError(f"there is no run {name!r}: {folder} does not exist. `koda run --name {name}` makes it.")
    return folder
