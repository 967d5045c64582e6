"""The nightly evaluation: a run's final model, measured again, with its history."""

import time
from typing import Any

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from model.errors import KodaError
from model.training.protocol import append
from tasks.evaluate import Evaluate, evaluate
from tasks.progress import say
from tasks.run import folder_of, read_built
from tasks.stage import worth_retrying


@task(cache_policy=NO_CACHE, persist_result=False, retries=2, retry_delay_seconds=60, retry_condition_fn=worth_retrying)
def measure(name: str, items: int) -> dict[str, Any]:
    """Evaluate the run's final model in a process of its own and record the figures."""
    folder = folder_of(name)
    built = {stage: read_built(folder, stage) for stage in ("tokenize", "checkpoint", "extend")}
    if missing := [stage for stage, found in built.items() if found is None]:
        raise KodaError(f"run {name!r} has no {missing[0]} yet: there is nothing to evaluate. `koda run` makes it.")
    out = folder / "nightly"
    out.mkdir(exist_ok=True)
    figures = evaluate.body(out, Evaluate(items=items), built["extend"], built["checkpoint"], built["tokenize"])
    append(folder / "nightly.jsonl", {"time": time.time(), "figures": figures})
    rows = [{"task": task_, **f} for task_, f in figures["tasks"].items()]
    create_table_artifact(rows, key=f"nightly-{name.lower().replace('_', '-').replace('.', '-')}")
    say(f"{name}: {figures['bits_per_byte']} bits per byte, {figures['tasks_above_chance']} tasks above chance")
    return figures
