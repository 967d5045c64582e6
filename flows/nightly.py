"""Scheduled evaluation of a run's model."""

from prefect import flow

from tasks.nightly import measure


@flow(name="koda", flow_run_name="nightly {name}", validate_parameters=False)
def nightly_eval(name: str = "tiny", items: int = 200) -> None:
    """Evaluate the run's final model again, and add a line to runs/<name>/nightly.jsonl.

    Args:
        name: the run.
        items: items of each home-made task.
    """
    measure(name, items)
