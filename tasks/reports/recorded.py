"""What a run has written down so far, for those who report it: finished stages, metrics, hardware."""

import contextlib
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from model.figures import PublishFigures
from model.files import read_json
from model.inspect.figures import Inspection
from model.training.goodput import DOWN, goodput
from model.training.records import Event, EventRecord, Metrics, read_events, read_metrics
from tasks.runs.paths import STAGES, read_configuration
from tasks.runs.record import Built, read_built, read_figures, read_record
from tasks.runs.run import flat
from tasks.typed import typed

TRAININGS = {"pretrain": "pretraining", "sft": "fine-tuning", "extend": "at the longer context"}
INSPECTION, INSPECTED = "inspect/inspect.json", "inspect/index.html"  # what `koda inspect` measured, and its page
MADE_OF = ("tokenizer.json", "train/", "heldout/")  # of what tokenize made: the files that decide what is learned
Kind = TypeVar("Kind")


def identity(checkpoint: Built[Any]) -> str:
    """What tells the weights of a run from those that it had before."""
    return f"{checkpoint.key} {checkpoint.finished}"


@dataclass(frozen=True)
class RecordedRun:
    """A run's folder, read and never written. A stage that is not finished has no record, and no figures."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def records(self) -> dict[str, dict[str, Any]]:
        """stage.json of each finished stage."""
        records = {stage: read_record(self.folder / stage) for stage in STAGES}
        return {stage: record for stage, record in records.items() if record}

    def figures(self, kind: type[Kind]) -> Kind | None:
        """The figures of the stage whose figures are of this `kind`."""
        return read_figures(self.folder, kind)

    @property
    def configuration(self) -> str:
        return (self.folder / "run.toml").read_text(encoding="utf-8")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """`{"pretrain.steps": 7, …}`"""
        return flat(read_configuration(self.folder))

    def metrics(self, stage: str) -> Metrics:
        return read_metrics(self.folder / stage)

    def events(self, stage: str) -> list[EventRecord]:
        return read_events(self.folder / stage)

    @property
    def published(self) -> str:
        """Where the exports were published: on the Hub, or in the folder, wherever it is by now; empty: nowhere yet."""
        figures = self.figures(PublishFigures)
        if figures is None:
            return ""
        return figures.where if figures.where.startswith("https://") else str(self.folder / "publish")

    def inspection(self) -> Inspection | None:
        """What `koda inspect` measured of the weights that the run has now; None where it measured none, or others."""
        with contextlib.suppress(ValueError):
            seen, checkpoint = typed(Inspection, self.read(INSPECTION)), read_built(self.folder, "checkpoint")
            return seen if checkpoint is None or seen.of == identity(checkpoint) else None
        return None

    def read(self, path: str) -> Any:
        """A JSON file of the run; None where it does not exist."""
        return read_json(self.folder / path) if (self.folder / path).is_file() else None

    def corpus(self) -> dict[str, str]:
        """The hashes of the tokenizer and of the shards, by file."""
        outputs = self.records.get("tokenize", {}).get("outputs", {})
        return {path: facts["sha256"] for path, facts in outputs.items() if path.startswith(MADE_OF)}

    def speeds(self, stage: str) -> list[tuple[int, float]]:
        """Tokens per second up to each step that was logged, saves and evaluations between included."""
        starts = [e.time for e in self.events(stage) if e.event in (Event.START, Event.RESUME)]
        return [
            (b.step, (b.tokens - a.tokens) / (b.time - a.time))
            for a, b in pairwise(self.metrics(stage).training)
            if b.time > a.time and not any(a.time < time <= b.time for time in starts)
        ]

    def devices(self, stage: str) -> tuple[int, str] | None:
        """How many devices of which kind a training last ran on; None for one that logged none."""
        logged = [e.details for e in self.events(stage) if "devices" in e.details]
        return (logged[-1]["devices"], logged[-1]["device"]) if logged else None

    def hours_up(self, stage: str) -> float:
        """Hours that a training's processes ran, over all their attempts."""
        return sum(seconds for part, seconds in goodput(self.folder / stage).items() if part != DOWN) / 3600
