"""When is a stage's result up to date?

A stage's key is a hash of its settings, the keys of the stages it reads and the version of its code. A result is up to
date if its record has that key, its outputs are intact, and it was built from what the stages before it hold now.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from model.files import read_json
from tasks.runs.record import RECORD, Built, outputs_intact, read_built
from tasks.section import Section


def stage_key(stage: str, version: int, inputs: tuple[Any, ...]) -> str:
    """What decides a stage's result; `inputs` are sections of the configuration and results of stages."""
    parts = [i.key if isinstance(i, Built) else i.decisive() if isinstance(i, Section) else i for i in inputs]
    return hashlib.sha256(json.dumps([stage, version, parts], sort_keys=True).encode()).hexdigest()


def up_to_date(run_folder: Path, stage: str, key: str, inputs: tuple[Any, ...]) -> Built[Any] | None:
    """The stage's result, if it is up to date."""
    built = read_built(run_folder, stage)
    if built is None or built.key != key or not outputs_intact(built.folder):
        return None
    built_from = read_json(built / RECORD).get("built_from", {})
    read = [i for i in inputs if isinstance(i, Built)]
    return built if all(built_from.get(i.stage, i.finished) == i.finished for i in read) else None
