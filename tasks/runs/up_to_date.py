"""When is a stage's result up to date?

A stage's key is a hash of its settings, the keys of the stages it reads and the version of its code. A result is up to
date if its record has that key, its outputs are intact, and it was built from what the stages before it hold now.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from model.errors import KodaError
from tasks.runs.record import Built, changed_outputs, read_built, read_record
from tasks.section import Section


def stage_key(stage: str, version: int, inputs: tuple[Any, ...]) -> str:
    """What decides a stage's result; `inputs` are sections of the configuration and results of stages."""
    parts = [i.key if isinstance(i, Built) else i.decisive() if isinstance(i, Section) else i for i in inputs]
    return hashlib.sha256(json.dumps([stage, version, parts], sort_keys=True).encode()).hexdigest()


def up_to_date(run_folder: Path, stage: str, key: str, inputs: tuple[Any, ...]) -> Built[Any] | None:
    """The stage's result, if it is up to date."""
    built = read_built(run_folder, stage)
    if built is None or built.key != key or changed_outputs(built.folder):
        return None
    built_from = (read_record(built.folder) or {}).get("built_from", {})
    read = [i for i in inputs if isinstance(i, Built)]
    return built if all(built_from.get(i.stage, i.finished) == i.finished for i in read) else None


def replaced_input(run_folder: Path, stage: str) -> str:
    """The first stage that `stage` was built from, itself or through others, and whose result of then is no longer
    there: it was rebuilt, or is being rebuilt. Empty where there is none, and for a stage that is not finished."""
    record = read_record(run_folder / stage) or {}
    for source, key in record.get("reads", {}).items():
        now = read_record(run_folder / source) or {}
        finished = record.get("built_from", {}).get(source, now.get("finished"))
        if earlier := replaced_input(run_folder, source):
            return earlier
        if (now.get("key"), now.get("finished")) != (key, finished):
            return source
    return ""


def check_inputs(run_folder: Path, stage: str) -> None:
    """Raise KodaError where a finished stage was built from a result that was replaced since."""
    if source := replaced_input(run_folder, stage):
        name = run_folder.name
        raise KodaError(
            f"{stage} of runs/{name} was built from an earlier {source}: `koda run --name {name}` brings it up to date "
            "first."
        )
