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
NUMBERS = ("steps", "batch_size", "learning_rate")  # of pretraining: reports calculate with them
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"  # of a run


def root() -> Path:
    """The folder of all runs: `runs` in the current folder, or KODA_RUNS."""
    return Path(os.environ.get("KODA_RUNS") or "runs")


def make_folder(folder: Path, mode: int) -> None:
    """Make a folder below the folder of all runs. Raises KodaError, naming it or KODA_RUNS, where that cannot be."""
    try:
        folder.mkdir(mode, parents=True, exist_ok=True)
    except OSError as error:
        if cause := _no_folder(folder):
            raise KodaError(f"{folder} cannot be written to: {cause}. Remove or rename it.") from None
        raise KodaError(
            f"runs cannot be written to {root()}: {_no_folder(root()) or error.strerror}. "
            "Set KODA_RUNS to a folder that you can write to."
        ) from None


def _no_folder(path: Path) -> str:
    """What is in the place of a folder; empty if nothing is, or the folder."""
    if path.is_symlink() and not path.exists():
        return "it is a link to nothing"
    return "it is a file" if path.exists() and not path.is_dir() else ""


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
    for name, value in written.get("pretrain", {}).items():
        if name in NUMBERS and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise KodaError(f"{path}: pretrain.{name} = {value!r}; it takes a number.")
    return written
