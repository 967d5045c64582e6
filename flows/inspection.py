"""A page about the inside of a run's model, from the UI."""

from typing import Annotated

from prefect import flow

from flows.cancel import cancellable
from flows.forms import Name, field
from tasks.inspection import inspected
from tasks.runs.paths import existing


@flow(name="koda", flow_run_name="inspect {name}", validate_parameters=False)
@cancellable
def inspect(name: Name = "tiny", text: Annotated[str, field("Text")] = "") -> None:
    """Write runs/NAME/inspect/index.html: how the model learned, and what happens in it. A run in training is left
    alone.

    Args:
        name: the run.
        text: a text to follow through the network; empty: held-out text.
    """
    inspected(existing(name), text)
