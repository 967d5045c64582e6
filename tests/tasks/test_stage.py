from pathlib import Path

from prefect import flow

from model.figures import CheckpointFigures
from tasks.stage import retried_call


def test_call_whose_process_was_killed_is_made_again(tmp_path: Path, prefect_server: None) -> None:
    """The kernel killed what measured the endings after a fine-tuning, and the whole run failed."""

    @flow(validate_parameters=False)
    def run() -> CheckpointFigures:
        died = tmp_path / "died"
        return retried_call("tests.tasks.background:dies_once", tmp_path / "sft.log", CheckpointFigures, path=died)

    assert run() == CheckpointFigures(parameters=7) and (tmp_path / "died").exists()
