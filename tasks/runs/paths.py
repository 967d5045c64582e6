"""Where runs lie, what they may be called, and the stages that they go through."""

import os
import re
import tomllib
from pathlib import Path
from typing import Any

from model.errors import KodaError
from model.figures import STAGES as FIGURES

STAGES = tuple(FIGURES)  # in their order
RUN_TOML = "run.toml"  # a run's whole configuration
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"  # of a run


def root() -> Path:
    """The folder of all runs: `runs` in the current folder, or KODA_RUNS."""
    return Path(os.environ.get("KODA_RUNS") or "runs")


def make_folder(folder: Path, mode: int) -> None:
    """Make a folder below the folder of all runs. Raises KodaError, naming KODA_RUNS, where that cannot be."""
    try:
        folder.mkdir(mode, parents=True, exist_ok=True)
    except OSError as error:
        where, cause = root(), error.strerror
        if where.is_symlink() and not where.exists():
            cause = "it is a link to nothing"
        elif where.exists() and not where.is_dir():
            cause = "it is a file"
        raise KodaError(
            f"runs cannot be written to {where}: {cause}. Set KODA_RUNS to a folder that you can write to."
        ) from None


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
    if not (folder / RUN_TOML).is_file():
        raise KodaError(f"there is no run {name!r}: {folder} does not exist. `koda run --name {name}` makes it.")
    return folder


def read_configuration(run: Path) -> dict[str, Any]:
    """The run.toml of a run: `{"preset": "tiny", "pretrain": {"steps": 7}, …}`.

    Raises KodaError for one that an edit has damaged.
    """
    path = run / RUN_TOML
    try:
        written = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise KodaError(f"{path} cannot be read: {error}. Correct it by hand; it is TOML, in UTF-8.") from None
    for name, value in written.items():
        if not isinstance(value, str if name == "preset" else dict):
            raise KodaError(f"{path}: {name} = {value!r}; it takes {'a name' if name == 'preset' else 'a section'}.")
    return written
