"""Scheduled evaluation of the newest weights."""

from typing import Annotated

from prefect import flow

from flows.cancel import cancellable
from flows.config import load
from flows.forms import field
from tasks.nightly import measure, run_to_measure
from tasks.progress import log_line


@flow(name="koda", flow_run_name="nightly {name}", validate_parameters=False)
@cancellable
def nightly_eval(
    name: Annotated[str, field("Name")] = "",
    memory_gb: Annotated[float, field("Memory, GB", gt=0)] = 16.0,
    wait_hours: Annotated[float, field("Wait, hours", ge=0)] = 6.0,
) -> None:
    """Evaluate a run's newest checkpoint, or its published model, compare with the nights before, and fail where it is
    significantly worse. Adds a line to runs/NAME/nightly/history.jsonl. The run's own settings, section
    evaluate, decide what is measured.

    Args:
        name: the run; empty: the one in training, or else the one that began last.
        memory_gb: memory that the evaluation may take, in GB; a training beside it keeps the rest.
        wait_hours: how long it waits for a free GPU, where the machine has any.
    """
    folder = run_to_measure(name)
    if folder is None:
        log_line("no run has weights yet: there is nothing to evaluate")
        return
    measure(folder, load("", run=folder).evaluate, memory_gb, wait_hours)
