from dataclasses import asdict, replace
from pathlib import Path

from model.training.job import Job
from model.training.pace import seconds_per_step


def test_more_layers_take_longer_steps(job: Job, tmp_path: Path) -> None:
    small = replace(job, folder=str(tmp_path), cache=None)
    large = replace(small, model=replace(job.model, num_hidden_layers=8))
    first, second = seconds_per_step([asdict(small), asdict(large)])
    assert 0 < first < second < 60
