"""One training on many devices: 8 virtual ones, each mesh in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.exit_codes import DONE, PREEMPTED, UNUSABLE
from model.ports import free_port
from model.training.heartbeat import Heartbeat
from model.training.job import Job
from model.training.records import read_metrics

RUN = """
import sys, json, time
from pathlib import Path
import jax
from model.training import loop
from model.training.job import Job
shares = {}
run = loop.Attempt.run
def spy(self, until):
    code = run(self, until)
    leaves = jax.tree_util.tree_flatten_with_path(self.training.state)[0]
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        shares[name] = leaf.addressable_shards[0].data.size / max(1, leaf.size)
    return code
loop.Attempt.run = spy
code = loop.train(Job.read(Path(sys.argv[1])), int(sys.argv[2]), time.time())
Path(sys.argv[1]).with_name("shares.json").write_text(json.dumps(shares))
sys.exit(code)
"""


def train(job: Job, devices: int, until: int = 12) -> int:
    folder = Path(job.folder)
    folder.mkdir(exist_ok=True, parents=True)
    job.write(folder / "job.json")
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    with (folder / "log").open("ab") as log:
        command = [sys.executable, "-c", RUN, str(folder / "job.json"), str(until)]
        return subprocess.run(command, env=environment, stdout=log, stderr=log).returncode


def losses(job: Job) -> list[float]:
    return [line.loss for line in read_metrics(Path(job.folder)).training]


@pytest.fixture(scope="module")
def alone(job: Job) -> Job:
    """Twelve steps on one device. With dropout, which has to draw the same wherever a row is, and after a resume."""
    recipe = replace(job.recipe, steps=12, save_every_steps=6, dropout=0.1)
    short = replace(job, folder=job.folder + "-mesh-1", recipe=recipe, cache=None)
    assert train(short, 1) == DONE, Path(short.folder, "log").read_text()
    return short


@pytest.mark.parametrize(("fsdp", "tensor"), [(1, 1), (8, 1), (2, 2), (4, 2)])
def test_every_mesh_trains_the_same_curve(alone: Job, fsdp: int, tensor: int) -> None:
    """Sums are taken in another order on each mesh: float32 rounding, which Muon's orthogonalisation carries on for
    twelve steps. A wrong gradient (a row counted twice, a shard left out) shows in the first decimals."""
    job = replace(alone, folder=f"{alone.folder}-{fsdp}-{tensor}", fsdp=fsdp, tensor=tensor)
    assert train(job, 8) == DONE, Path(job.folder, "log").read_text()
    np.testing.assert_allclose(losses(job), losses(alone), atol=2e-3)
    shares = json.loads((Path(job.folder) / "shares.json").read_text())
    kernels = {name: share for name, share in shares.items() if name.endswith("kernel")}
    assert len(kernels) >= 14  # parameters and at least one moment of each
    assert all(share == 1 / (fsdp * tensor) for share in kernels.values())


def test_checkpoint_moves_between_numbers_of_devices(alone: Job) -> None:
    """Six steps on 8 devices, two on each of 4, 2 and 1: still the same curve."""
    moved = replace(alone, folder=alone.folder + "-moved")
    for devices, fsdp, until in ((8, 4, 6), (4, 4, 8), (2, 2, 10), (1, 1, 12)):
        assert train(replace(moved, fsdp=fsdp), devices, until) == DONE
    np.testing.assert_allclose(losses(moved), losses(alone), atol=2e-3)


@pytest.mark.parametrize(
    ("change", "message"), [({"fsdp": 3}, "does not divide the 8 devices"), ({}, "batch_size = 6 cannot")]
)
def test_mesh_that_does_not_fit_is_refused(alone: Job, tmp_path: Path, change: dict, message: str) -> None:
    rows = 8 if change else 6
    job = replace(alone, folder=str(tmp_path / "job"), recipe=replace(alone.recipe, batch_size=rows), **change)
    folder = Path(job.folder)
    folder.mkdir()
    job.write(folder / "job.json")
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-m", "model.training", str(folder / "job.json"), "12"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == UNUSABLE and message in ended.stderr, ended.stderr


def together(job: Job, count: int, until: int) -> list[int]:
    """The same training by so many processes that JAX joins; their exit codes."""
    address = f"127.0.0.1:{free_port()}"
    folder = Path(job.folder)
    folder.mkdir(exist_ok=True, parents=True)
    job.write(folder / "job.json")
    processes = []
    for number in range(count):
        environment = {
            **os.environ,
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(number),
        }
        with (folder / f"log{number}").open("ab") as log:
            command = [sys.executable, "-c", READS, str(folder / "job.json"), str(until)]
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    return [process.wait(timeout=300) for process in processes]


READS = """
import sys, os
from pathlib import Path
from model.data.batches import Batches
part = Batches.part
folder, number = Path(sys.argv[1]).parent, os.environ["JAX_PROCESS_ID"]
(folder / f"pid{number}").write_text(str(os.getpid()))
read = folder / f"rows{number}"
def spy(self, step, rows):
    with read.open("a") as file:
        print(step, rows.start, rows.stop, file=file)
    return part(self, step, rows)
Batches.part = spy
from model.training.__main__ import main
sys.exit(main())
"""


def test_two_processes_train_the_same_curve(alone: Job) -> None:
    """Six steps by two processes, each reading its own rows, and six more by one: the curve of one process.

    The tolerance is that of the meshes above, for the same reason.
    """
    job = replace(alone, folder=f"{alone.folder}-two", fsdp=2)
    assert together(job, 2, until=6) == [DONE, DONE], Path(job.folder, "log0").read_text()
    for number, rows in ((0, "0 4"), (1, "4 8")):
        read = (Path(job.folder) / f"rows{number}").read_text().splitlines()
        assert read == [f"{step} {rows}" for step in range(6)]
    assert train(replace(job, fsdp=1), 1) == DONE
    assert [line.step for line in read_metrics(Path(job.folder)).training] == list(range(1, 13))
    np.testing.assert_allclose(losses(job), losses(alone), atol=2e-3)


def test_two_processes_stop_at_one_step(alone: Job) -> None:
    """SIGTERM reaches one of them; both leave, after a step that is saved."""
    job = replace(alone, folder=f"{alone.folder}-stop", recipe=replace(alone.recipe, steps=5000))
    stopped: list[int] = []

    def stop() -> None:
        while not (beat := Heartbeat.read(Path(job.folder))) or beat["step"] < 3:
            time.sleep(0.05)
        os.kill(int((Path(job.folder) / "pid1").read_text()), signal.SIGTERM)
        stopped.append(beat["step"])

    thread = threading.Thread(target=stop)
    thread.start()
    assert together(job, 2, until=5000) == [PREEMPTED, PREEMPTED], Path(job.folder, "log0").read_text()
    thread.join()
    saved = [int(p.parent.name) for p in Path(job.folder).glob("checkpoints/*/COMMIT.json")]
    assert max(saved) >= stopped[0]


def test_more_processes_than_rows_are_refused(alone: Job, tmp_path: Path) -> None:
    job = replace(alone, folder=str(tmp_path / "job"), recipe=replace(alone.recipe, batch_size=1))
    assert together(job, 2, until=2) == [UNUSABLE, UNUSABLE]
    assert "batch_size = 1 cannot be spread over 2 devices" in Path(job.folder, "log0").read_text()
