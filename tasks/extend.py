"""Stage 5: the same model with a longer context, by an NTK-aware change of the rotary base."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveInt

from tasks.run import Built
from tasks.section import Section
from tasks.stage import stage
from tasks.supervise import call


class Extend(Section):
    factor: Annotated[float, Field(gt=1)] = 2.0
    """How many times as long the context becomes."""
    rows: PositiveInt = 64
    """Held-out rows of the new length in the measurement by position."""


@stage(version=1)
def extend(out: Path, settings: Extend, model: Built, tokens: Built) -> dict[str, Any]:
    """Write weights/ with the new base and context, and positions.json: held-out loss by position, before and after."""
    return call(
        "model.evaluation.context:extend",
        out / "extend.log",
        source=model / "weights",
        out=out,
        heldout=tokens / "heldout",
        factor=settings.factor,
        rows=settings.rows,
    )
