"""The inside of a run's model: measured in a process of its own, then put on a page."""

import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from prefect import task

from model.errors import KodaError
from model.figures import CorpusFigures, ExtendFigures, SftFigures
from model.files import committed_steps, write_json
from model.inspect.figures import Inspection
from model.training.records import SNAPSHOTS
from tasks import retries
from tasks.devices import free_or_cpu
from tasks.progress import log_line
from tasks.reports.recorded import INSPECTED, INSPECTION, identity
from tasks.runs.record import Built, read_built, read_record
from tasks.runs.up_to_date import check_inputs, replaced_input
from tasks.supervise import call
from tasks.tokenize import Tokenize


def inspect(run: Path, text: str = "") -> Path:
    """Write inspect/index.html into a run's folder, and inspect.json with the numbers behind it; returns the page.

    `text` is sent through the network; empty: the beginning of the held-out text. Raises KodaError where the run has no
    weights yet, and for a text that does not fit.
    """
    from tasks.reports.inspect_page import page  # here, as a command that is refused need not wait for Matplotlib

    looked_at, folder = LookedAt.of(run), (run / INSPECTED).parent
    folder.mkdir(exist_ok=True)
    measured = call(
        "model.inspect.measure:measure",
        folder / "inspect.log",
        Inspection,
        environment=free_or_cpu(),
        of=looked_at.identity,
        base=looked_at.base,
        tokens=looked_at.tokens.folder,
        imported=looked_at.imported,
        training=run / "pretrain",
        sft=looked_at.sft.folder if looked_at.sft else "",
        tuned=looked_at.tuned,
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
    identity: str  # of these weights
    imported: bool
    tokens: Built[CorpusFigures]
    sft: Built[SftFigures] | None
    extend: Built[ExtendFigures] | None  # None where the context stayed as it was
    recipe: dict[str, Any]  # how the text was read; empty where that is not known

    @property
    def tuned(self) -> bool:
        """Did sft change the weights?"""
        return self.sft is not None and self.sft.figures.steps > 0

    @staticmethod
    def of(run: Path) -> "LookedAt":
        """A run's results that are up to date; in training, its newest snapshot. Raises KodaError where it has no
        weights yet, and where they were trained on another text than it has now."""
        check_inputs(run, "pretrain")
        tokens, pretrain = read_built(run, "tokenize"), read_built(run, "pretrain")
        checkpoint, sft, extend = (_current(run, stage) for stage in ("checkpoint", "sft", "extend"))
        snapshots = committed_steps(run / "pretrain" / SNAPSHOTS)
        if tokens is None or (checkpoint is None and not snapshots):
            raise KodaError(f"run {run.name!r} has no weights yet: the command that began it goes on with it.")
        if checkpoint is None:
            sft = extend = None
        return LookedAt(
            base=checkpoint / "weights" if checkpoint else run / "pretrain" / SNAPSHOTS / str(snapshots[-1]),
            identity=identity(checkpoint) if checkpoint else f"step {snapshots[-1]}",
            imported=pretrain is not None and bool(pretrain.figures.imported),
            tokens=tokens,
            sft=sft,
            extend=extend if extend is not None and sft is not None and extend.figures.measured else None,
            recipe=_recipe(tokens),
        )


def _current(run: Path, stage: str) -> Built[Any] | None:
    return None if replaced_input(run, stage) else read_built(run, stage)


def _recipe(tokens: Built[CorpusFigures]) -> dict[str, Any]:
    """How the text was read, as the stage recorded it."""
    recorded = (read_record(tokens.folder) or {})["settings"].get("tokenize", {})
    with contextlib.suppress(ValueError):  # of another version
        return asdict(Tokenize.model_validate(recorded | {"cut": tokens.figures.cut}).recipe())
    return {}
