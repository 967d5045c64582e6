"""A finished stage: its folder, and the record in it of what it was built from and what it made."""

import contextlib
import importlib.metadata
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from model.figures import STAGES
from model.files import listing, read_json
from tasks.typed import typed

RECORD = "stage.json"
PACKAGES = ("koda", "jax", "flax", "optax", "orbax-checkpoint", "tokenizers", "transformers", "gguf", "mlx", "mlx-lm")


Figures = TypeVar("Figures", covariant=True)
Kind = TypeVar("Kind")


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


def read_built(run_folder: Path, stage: str) -> Built[Any] | None:
    """The finished stage in a run's folder; None where there is none, or one whose figures are of another version."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        record = read_json(run_folder / stage / RECORD)
        figures: Any = typed(STAGES[stage], record["figures"])
        return Built(stage, run_folder / stage, record["key"], figures, record["finished"])
    return None


def read_figures(run_folder: Path, kind: type[Kind]) -> Kind | None:
    """The figures of the stage whose figures are of this `kind`; None where it is not finished."""
    stage = next(name for name, figures in STAGES.items() if figures is kind)
    built = read_built(run_folder, stage)
    return built.figures if built else None


def outputs_intact(folder: Path) -> bool:
    """Are all outputs that a stage recorded there, with the bytes that it recorded?"""
    recorded, present = read_json(folder / RECORD)["outputs"], listing(folder)
    return all(present.get(path) == facts for path, facts in recorded.items())


def versions() -> dict[str, str]:
    """The interpreter and the packages that a result depends on."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed
