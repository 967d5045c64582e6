"""What a run has written down so far, for those who tell about it: finished stages, metrics, hardware."""

import tomllib
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from model.files import read_json
from model.training.goodput import DOWN, goodput
from model.training.protocol import EVENTS, METRICS, lines
from tasks.run import RECORD, STAGES, flat

TRAININGS = {"pretrain": "pretraining", "sft": "fine-tuning", "extend": "at the longer context"}
MADE_OF = ("tokenizer.json", "train/", "heldout/")  # of what tokenize made: the files that decide what is learned


@dataclass(frozen=True)
class Recorded:
    """A run's folder, read and never written. A stage that is not finished has no record, and empty figures."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def records(self) -> dict[str, dict[str, Any]]:
        paths = {stage: self.folder / stage / RECORD for stage in STAGES}
        return {stage: read_json(path) for stage, path in paths.items() if path.is_file()}

    def figures(self, stage: str) -> dict[str, Any]:
        return self.records.get(stage, {}).get("figures", {})

    @property
    def configuration(self) -> str:
        return (self.folder / "run.toml").read_text(encoding="utf-8")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """`{"pretrain.steps": 7, …}`"""
        return flat(tomllib.loads(self.configuration))

    def metrics(self, stage: str) -> list[dict[str, Any]]:
        return lines(self.folder / stage / METRICS)

    def read(self, path: str) -> Any:
        """A JSON file of the run; None where it is not there."""
        return read_json(self.folder / path) if (self.folder / path).is_file() else None

    def corpus(self) -> dict[str, str]:
        """The hashes of the tokenizer and of the shards, by file."""
        outputs = self.records.get("tokenize", {}).get("outputs", {})
        return {path: facts["sha256"] for path, facts in outputs.items() if path.startswith(MADE_OF)}

    def speeds(self, stage: str) -> list[tuple[int, float]]:
        """Tokens per second up to each step that was logged, saves and evaluations between included."""
        begun = [line["time"] for line in lines(self.folder / stage / EVENTS) if line["event"] in ("start", "resume")]
        logged = [line for line in self.metrics(stage) if "tokens" in line]
        return [
            (b["step"], (b["tokens"] - a["tokens"]) / (b["time"] - a["time"]))
            for a, b in pairwise(logged)
            if b["time"] > a["time"] and not any(a["time"] < time <= b["time"] for time in begun)
        ]

    def devices(self, stage: str) -> tuple[int, str] | None:
        """How many devices of which kind a training last ran on; None for one that noted none."""
        noted = [line for line in lines(self.folder / stage / EVENTS) if "devices" in line]
        return (noted[-1]["devices"], noted[-1]["device"]) if noted else None

    def hours_up(self, stage: str) -> float:
        """Hours that a training's processes ran, over all their lives."""
        return sum(seconds for part, seconds in goodput(self.folder / stage).items() if part != DOWN) / 3600
