"""How long a step takes, on the devices that are here."""

import tempfile
import time
from dataclasses import replace
from statistics import median
from typing import Any

import jax

from model.training import distributed
from model.training.job import Job
from model.training.training import Training

TIMED = 10  # steps
UNTIMED = 3  # before them


def seconds_per_step(jobs: list[dict[str, Any]]) -> list[float]:
    """The median of a few steps of each job (the fields of a Job), from fresh weights, in the form of its training."""
    distributed.check_devices()
    with tempfile.TemporaryDirectory() as scratch:  # where a training would have its checkpoints
        return [_median(Training(replace(Job.from_dict(job), folder=scratch))) for job in jobs]


def _median(training: Training) -> float:
    with jax.set_mesh(training.mesh):
        training.settle(distributed.device_memory())
        training.begin()
        times = []
        for number in range(UNTIMED + TIMED):
            began = time.perf_counter()
            jax.block_until_ready(training.advance(training.batch(number)))
            times.append(time.perf_counter() - began)
    return median(times[UNTIMED:])
