"""A finished stage: its folder, and the record in it of what it was built from and what it made."""

import contextlib
import importlib.metadata
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import StrictFloat, ValidationError

from model.errors import KodaError
from model.figures import STAGES
from model.files import listing, read_json
from model.training.records import SNAPSHOTS
from tasks.typed import typed

RECORD = "stage.json"
PACKAGES = ("koda", "jax", "flax", "optax", "orbax-checkpoint", "tokenizers", "transformers", "gguf", "mlx", "mlx-lm")


Figures = TypeVar("Figures", covariant=True)
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class _Output:
    size: int
    sha256: str


@dataclass(frozen=True)
class _Record:
    """What a record may have, as `Run.build` writes it; records of earlier versions have less."""

    stage: str = ""
    key: str = ""
    seconds: StrictFloat = 0.0
    finished: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    reads: dict[str, str] = field(default_factory=dict)
    built_from: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, _Output] = field(default_factory=dict)


@dataclass(frozen=True)
class Built(Generic[Figures]):
    """A finished stage, as the stages after it see it: small, and never an array."""

    stage: str
    folder: Path
    key: str
    figures: Figures
    finished: str = ""  # when, as its record has it

    def __truediv__(self, path: str) -> Path:
        """A file of the stage: `tokens / "tokenizer.json"`."""
        return self.folder / path


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of the stage in `folder`; None where it is not finished. Raises KodaError for a damaged one."""
    path = folder / RECORD
    try:
        record: dict[str, Any] = read_json(path)
        typed(_Record, record)
        return record
    except (FileNotFoundError, NotADirectoryError):
        return None
    except KodaError as error:
        wrong = str(error)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"])) or "all of it"
        wrong = f"{path} is not the record of a stage: {place} is {problem['input']!r}"
    raise KodaError(f"{wrong}. Without that file, `koda run` builds the stage again.")


def read_built(run_folder: Path, stage: str) -> Built[Any] | None:
    """The finished stage in a run's folder; None where there is none, or one whose figures are of another version.

    Raises KodaError for a damaged record.
    """
    record = read_record(run_folder / stage) or {}
    with contextlib.suppress(ValueError, KeyError):
        figures: Any = typed(STAGES[stage], record["figures"])
        return Built(stage, run_folder / stage, record["key"], figures, record["finished"])
    return None


def read_figures(run_folder: Path, kind: type[Kind]) -> Kind | None:
    """The figures of the stage whose figures are of this `kind`; None where it is not finished."""
    stage = next(name for name, figures in STAGES.items() if figures is kind)
    built = read_built(run_folder, stage)
    return built.figures if built else None


def changed_outputs(folder: Path) -> list[str]:
    """The outputs that a stage recorded and that are not there any more with the bytes that it recorded."""
    recorded, present = (read_record(folder) or {})["outputs"], listing(folder, SNAPSHOTS)
    return [path for path, facts in recorded.items() if present.get(path) != facts]


def versions() -> dict[str, str]:
    """The interpreter and the packages that a result depends on."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed
