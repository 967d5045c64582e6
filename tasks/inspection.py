"""The inside of a run's model: measured in a process of its own, then put on a page."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from prefect import task

from model.errors import KodaError
from model.figures import CorpusFigures, ExtendFigures, SftFigures
from model.files import write_json
from model.inspect.figures import Inspection
from tasks import retries
from tasks.devices import free_or_cpu
from tasks.progress import log_line
from tasks.reports.recorded import INSPECTED, INSPECTION
from tasks.runs.paths import read_configuration
from tasks.runs.record import Built, read_built
from tasks.runs.up_to_date import replaced_input
from tasks.supervise import call
from tasks.tokenize import Tokenize


def inspect(run: Path, text: str = "") -> Path:
    """Write inspect/index.html into a run's folder, and inspect.json with the numbers behind it; returns the page.

    `text` is sent through the network; empty: the beginning of the held-out text. Raises KodaError where the run has no
    weights yet, and for a text that does not fit.
    """
    from tasks.reports.inspect_page import page  # here, as a command that is refused need not wait for Matplotlib

    folder = (run / INSPECTED).parent
    folder.mkdir(exist_ok=True)
    looked_at = LookedAt.of(run)
    measured = call(
        "model.inspect.measure:measure",
        folder / "inspect.log",
        Inspection,
        environment=free_or_cpu(),
        base=looked_at.base,
        tokens=looked_at.tokens.folder,
        training=run / "pretrain",
        sft=looked_at.sft.folder if looked_at.sft else "",
        extend=looked_at.extend.folder if looked_at.extend else "",
        text=text,
        recipe=looked_at.recipe,
    )
    write_json(run / INSPECTION, measured)
    return page(run / INSPECTED, run.name, measured)


@task(name="inspect", **retries.STAGE)
def inspected(run: Path, text: str) -> None:
    """The same as a task, which reports where the page is."""
    log_line(f"inspect    {inspect(run, text)}")


class LookedAt(NamedTuple):
    """What there is to see in a run."""

    base: Path  # weights
    tokens: Built[CorpusFigures]
    sft: Built[SftFigures] | None  # None where it changed nothing, or not these weights
    extend: Built[ExtendFigures] | None
    recipe: dict[str, Any]  # how the text was read

    @staticmethod
    def of(run: Path) -> "LookedAt":
        """A run's results that are up to date; in training, its newest snapshot. Raises KodaError where it has no
        weights yet."""
        tokens, checkpoint, sft, extend = (_current(run, name) for name in ("tokenize", "checkpoint", "sft", "extend"))
        steps = sorted(int(p.parent.name) for p in (run / "pretrain/snapshots").glob("*/COMMIT.json"))
        if tokens is None or (checkpoint is None and not steps):
            raise KodaError(f"run {run.name!r} has no weights yet: the command that began it goes on with it.")
        settings = Tokenize.model_validate(read_configuration(run).get("tokenize", {}))
        if checkpoint is None or sft is None or not sft.figures.steps:
            sft = extend = None
        return LookedAt(
            base=checkpoint / "weights" if checkpoint else run / "pretrain/snapshots" / str(steps[-1]),
            tokens=tokens,
            sft=sft,
            extend=extend if extend is not None and extend.figures.measured else None,
            recipe=asdict(replace(settings.recipe(), cut=tokens.figures.cut)),
        )


def _current(run: Path, stage: str) -> Built[Any] | None:
    return None if replaced_input(run, stage) else read_built(run, stage)
