"""Stage 7: bits per byte beside xz, and eight home-made tasks."""

from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from tasks.run import Built
from tasks.section import Section
from tasks.stage import stage
from tasks.supervise import call


class Evaluate(Section):
    items: PositiveInt = 200
    """Items of each task."""
    max_bytes: PositiveInt = 400_000
    """Held-out text that bits per byte are measured on, and xz beside them."""


@stage(version=1)
def evaluate(out: Path, settings: Evaluate, model: Built, base: Built, tokens: Built) -> dict[str, Any]:
    """Evaluate the final model, and the base model's bits per byte."""
    return call(
        "model.evaluation.suite:evaluate",
        out / "evaluate.log",
        model=model / "weights",
        base=base / "weights",
        tokens=tokens.folder,
        items=settings.items,
        max_bytes=settings.max_bytes,
    )
