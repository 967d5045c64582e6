"""The train loop as a process: what it learns, and that kills, stops and bad batches change nothing of it."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from model import arrays, weights
from model.exit_codes import DONE, PREEMPTED, ROLLED_BACK, UNUSABLE
from model.files import committed_steps, read_json, write_json
from model.llama import Llama
from model.training import goodput
from model.training.heartbeat import Heartbeat
from model.training.job import Job
from model.training.records import SNAPSHOTS, WINDOWS, Event, read_events, read_metrics
from model.training.snapshots import taken


def start(job: Job, until: int = 60) -> subprocess.Popen:
    folder = Path(job.folder)
    folder.mkdir(exist_ok=True)
    job.write(folder / "job.json")
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "model.training", str(folder / "job.json"), str(until)], stdout=log, stderr=log
        )


def await_step(job: Job, step: int) -> None:
    deadline = time.monotonic() + 120
    while (beat := Heartbeat.read(Path(job.folder))) is None or beat["step"] < step:
        assert time.monotonic() < deadline, Path(job.folder, "log").read_text()
        time.sleep(0.01)


def crc(job: Job, step: int = 60) -> dict[str, int]:
    """The checksums of everything that a step's checkpoint holds, optimizer and all."""
    described = arrays.facts(Path(job.folder) / "checkpoints" / str(step))["arrays"]
    return {name: array["crc32"] for name, array in described.items()}


@pytest.fixture(scope="module")
def uninterrupted(job: Job) -> Job:
    """The same training, never interrupted."""
    assert start(job).wait() == DONE, Path(job.folder, "log").read_text()
    return job


def snapshots(job: Job) -> dict[int, dict[str, int]]:
    """The checksums of all snapshots, by their steps."""
    folder = Path(job.folder) / SNAPSHOTS
    return {
        step: {name: array["crc32"] for name, array in arrays.facts(folder / str(step))["arrays"].items()}
        for step in taken(Path(job.folder))
    }


def losses(job: Job) -> list[float]:
    return [line.loss for line in read_metrics(Path(job.folder)).training]


def steps(job: Job) -> list[int]:
    return [line.step for line in read_metrics(Path(job.folder)).training]


def test_loss_falls_and_is_logged(uninterrupted: Job) -> None:
    metrics = read_metrics(Path(uninterrupted.folder))
    losses, heldout = [line.loss for line in metrics.training], [line.heldout_loss for line in metrics.heldout]
    assert len(losses) == 60 and losses[0] == pytest.approx(6.24, abs=0.2)  # ln 512, and the embeddings' noise
    assert losses[-1] < 0.8 * losses[0] and heldout[-1] < heldout[0]
    assert arrays.facts(Path(uninterrupted.folder) / "checkpoints/60")["heldout_loss"] == heldout[-1]


@pytest.mark.parametrize("step", [3, 25, 47])
def test_kill_changes_nothing(uninterrupted: Job, tmp_path: Path, step: int) -> None:
    """kill -9 at any step: the second attempt ends with the very bits of the training that was never killed."""
    job = replace(uninterrupted, folder=str(tmp_path / "killed"))
    first = start(job)
    await_step(job, step)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    kept = [int(p.parent.name) for p in Path(job.folder).glob("checkpoints/*/COMMIT.json")]
    assert max(kept, default=0) >= step - 20 - 8  # at most the work since the last save (a few steps run ahead of it)
    assert start(job).wait() == DONE
    assert crc(job) == crc(uninterrupted) and snapshots(job) == snapshots(uninterrupted)
    assert steps(job) == list(range(1, 61))  # each once, though some were done twice


def test_temporary_saves_come_as_soon_as_their_cost_allows_and_change_nothing(
    uninterrupted: Job, tmp_path: Path
) -> None:
    """Between two permanent ones a kill costs some steps, and not all of them; the bits are those without any."""
    recipe = replace(uninterrupted.recipe, save_share=0.9, disk_share=1.0, save_every_steps=60)
    job = replace(uninterrupted, folder=str(tmp_path / "saving"), recipe=recipe)
    code = "import sys; from model.training import __main__, cadence; cadence.FIRST = 0.0; sys.exit(__main__.main())"
    Path(job.folder).mkdir()
    job.write(Path(job.folder) / "job.json")
    command = [sys.executable, "-c", code, f"{job.folder}/job.json"]
    first = subprocess.Popen(command)
    await_step(job, 50)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = committed_steps(Path(job.folder) / "checkpoints")
    assert 1 <= len(kept) <= 2 and kept[0] > 0, kept  # two where the older was about to be removed
    saves = (Heartbeat.read(Path(job.folder)) or {})["saves"]
    assert 0 < saves["stall"] < saves["write"] <= saves["interval"]
    assert subprocess.run(command).returncode == DONE
    assert crc(job) == crc(uninterrupted) and steps(job) == list(range(1, 61))
    saved = [record.step for record in read_events(Path(job.folder)) if record.event is Event.SAVED]
    assert saved == [60]  # of the temporary ones there would be thousands


def test_snapshots_are_the_weights_of_their_steps_and_change_nothing(uninterrupted: Job, tmp_path: Path) -> None:
    steps = uninterrupted.recipe.snapshot_steps()
    assert list(snapshots(uninterrupted)) == steps and len(steps) == 8 and steps[0] == 0 and steps[-1] == 60
    model = weights.load(Path(uninterrupted.folder) / SNAPSHOTS / "60")
    saved = arrays.read(Path(uninterrupted.folder) / "checkpoints/60")
    for name, leaf in arrays.flatten(nnx.to_pure_dict(nnx.state(model, nnx.Param))).items():
        assert (leaf == saved[f"params/{name}"].astype("bfloat16").astype("float32")).all(), name
    job = replace(uninterrupted, folder=str(tmp_path / "without"), recipe=replace(uninterrupted.recipe, snapshots=0))
    assert start(job).wait() == DONE
    assert crc(job) == crc(uninterrupted) and not snapshots(job)


def test_two_segments_are_one_training(uninterrupted: Job, tmp_path: Path) -> None:
    job = replace(uninterrupted, folder=str(tmp_path / "segments"))
    assert start(job, until=30).wait() == DONE
    assert start(job, until=20).wait() == DONE  # of an earlier segment there is nothing left to do
    assert start(job, until=60).wait() == DONE
    assert crc(job) == crc(uninterrupted)


def test_sigterm_saves_and_leaves(uninterrupted: Job, tmp_path: Path) -> None:
    job = replace(uninterrupted, folder=str(tmp_path / "stopped"))
    process = start(job)
    await_step(job, 7)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == PREEMPTED
    saved = [int(p.parent.name) for p in Path(job.folder).glob("checkpoints/*/COMMIT.json")]
    assert max(saved) >= 7
    assert start(job).wait() == DONE
    assert crc(job) == crc(uninterrupted)


def test_another_corpus_is_refused(uninterrupted: Job, tmp_path: Path) -> None:
    job = replace(uninterrupted, recipe=replace(uninterrupted.recipe, batch_size=4))
    copy = replace(job, folder=str(tmp_path / "other"))
    Path(copy.folder).symlink_to(uninterrupted.folder)
    process = start(copy)
    assert process.wait() == UNUSABLE
    assert "was trained on other data" in Path(copy.folder, "log").read_text()
    uninterrupted.write(Path(uninterrupted.folder) / "job.json")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals a parent's death")
def test_trainer_leaves_when_its_parent_dies(uninterrupted: Job, tmp_path: Path) -> None:
    job = replace(uninterrupted, folder=str(tmp_path / "orphan"), recipe=replace(uninterrupted.recipe, steps=100_000))
    Path(job.folder).mkdir()
    job.write(Path(job.folder) / "job.json")
    code = f"""import subprocess, sys, time
subprocess.Popen([sys.executable, "-m", "model.training", {str(Path(job.folder) / "job.json")!r}, "100000"])
time.sleep(600)"""
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    await_step(job, 2)
    trainer = (Heartbeat.read(Path(job.folder)) or {})["pid"]
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{trainer}").exists() and "zombie" not in Path(f"/proc/{trainer}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert list(Path(job.folder).glob("checkpoints/*/COMMIT.json"))  # and it saved first


POISONED = """
import sys, time
from pathlib import Path
import numpy as np
from model.data.batches import Batches
from model.training import loop
from model.training.job import Job
take = Batches.part
def poisoned(self, index, rows):
    batch = take(self, index, rows)
    return batch._replace(weights_BT=batch.weights_BT * np.nan) if {first} <= index < {last} else batch
Batches.part = poisoned
sys.exit(loop.train(Job.read(Path(sys.argv[1])), 60, time.time()))
"""


def poisoned(job: Job, first: int, last: int) -> int:
    """One attempt at a training in which these batches give numbers that are not finite; returns its exit code."""
    folder = Path(job.folder)
    folder.mkdir(exist_ok=True)
    job.write(folder / "job.json")
    code = POISONED.format(first=first, last=last)
    with (folder / "log").open("ab") as log:
        command = [sys.executable, "-c", code, str(folder / "job.json")]
        return subprocess.run(command, stdout=log, stderr=log).returncode


def test_one_bad_batch_is_skipped(uninterrupted: Job, tmp_path: Path) -> None:
    job = replace(uninterrupted, folder=str(tmp_path / "one"))
    assert poisoned(job, 30, 31) == DONE
    skipped = [record.step for record in read_events(Path(job.folder)) if record.event is Event.SKIPPED]
    assert skipped == [31]
    assert len(losses(job)) == 59 and losses(job)[-1] < 0.8 * losses(job)[0]


@pytest.mark.parametrize(("first", "back_to"), [(47, 40), (38, 20)])
def test_many_bad_batches_are_stepped_over(uninterrupted: Job, tmp_path: Path, first: int, back_to: int) -> None:
    """Back to the last checkpoint, and on after that window; it ends as a training that was to skip the window does.

    In the second case a save becomes due among the bad steps, and waits.
    """
    job = replace(uninterrupted, folder=str(tmp_path / "many"))
    assert poisoned(job, first, first + 5) == ROLLED_BACK
    windows = read_json(Path(job.folder) / WINDOWS)
    assert windows[0][0] == back_to and len(windows) == 1
    assert first + 5 <= sum(windows[0]) <= first + 8
    assert poisoned(job, first, first + 5) == DONE
    skips = replace(uninterrupted, folder=str(tmp_path / "skips"))
    Path(skips.folder).mkdir()
    write_json(Path(skips.folder) / WINDOWS, windows)
    assert start(skips).wait() == DONE
    assert crc(skips) == crc(job) != crc(uninterrupted)
    assert snapshots(skips) == snapshots(job) != snapshots(uninterrupted)


def test_weights_that_are_not_finite_are_refused(uninterrupted: Job, tmp_path: Path) -> None:
    """Nothing is trained from them, and no checkpoint is written."""
    model = Llama(uninterrupted.model, rngs=nnx.Rngs(0))
    weights.save(tmp_path / "weights", model)
    facts = arrays.facts(tmp_path / "weights")
    named = arrays.read(tmp_path / "weights")
    named["norm/scale"][3] = np.nan
    facts["arrays"]["norm/scale"]["crc32"] = arrays.checksum(named["norm/scale"])
    shutil.rmtree(tmp_path / "weights" / "arrays")
    with ocp.PyTreeCheckpointer() as orbax:
        orbax.save(tmp_path / "weights" / "arrays" / "0", named)
    write_json(tmp_path / "weights" / arrays.COMMIT, facts)
    job = replace(uninterrupted, folder=str(tmp_path / "job"), init=str(tmp_path / "weights"))
    assert start(job).wait() == UNUSABLE
    assert re.search("norm/scale .* not finite", Path(job.folder, "log").read_text())
    assert not list(Path(job.folder).glob("checkpoints/*"))


def test_every_second_of_a_killed_training_is_accounted_for(uninterrupted: Job, tmp_path: Path) -> None:
    """Over two attempts with a kill between them, the parts add up to the wall-clock from the beginning of the first to
    the last event of the second. Before and after that Python starts and ends, which neither process can measure.
    """
    job = replace(uninterrupted, folder=str(tmp_path / "killed"))
    began = time.time()
    first = start(job)
    await_step(job, 30)
    first.send_signal(signal.SIGKILL)
    first.wait()
    time.sleep(1)  # down
    assert start(job).wait() == DONE
    spent = goodput.goodput(Path(job.folder))
    wall = time.time() - began
    events = read_events(Path(job.folder))
    beginning = next(record.details["began"] for record in events if record.event is Event.SPENT)
    assert sum(spent.values()) == pytest.approx(events[-1].time - beginning, abs=0.2)
    assert sum(spent.values()) < wall
    starts = [record for record in events if record.event in (Event.START, Event.RESUME)]
    assert len(starts) == 2 and {record.details["device"] for record in starts} == {"cpu"}
    assert min(spent[part] for part in ("training", "start and compile", "evaluation", "lost to rework")) > 0


def test_two_trainers_never_write_one_folder(uninterrupted: Job, tmp_path: Path) -> None:
    """Both are started; one trains, and the other waits for it to leave and then refuses. No step is done twice."""
    job = replace(uninterrupted, folder=str(tmp_path / "both"), recipe=replace(uninterrupted.recipe, steps=100_000))
    first = start(job, until=100_000)
    await_step(job, 5)
    impatient = "import sys; from model.training import __main__, loop; loop.LEAVING = 2.0; sys.exit(__main__.main())"
    command = [sys.executable, "-c", impatient]
    second = subprocess.run([*command, f"{job.folder}/job.json", "100000"], capture_output=True, text=True)
    assert second.returncode == UNUSABLE and f"is locked by process {first.pid}" in second.stderr
    first.send_signal(signal.SIGTERM)
    assert first.wait(20) == PREEMPTED
    assert steps(job) == sorted(set(steps(job)))


def test_gpus_that_do_not_come_up_are_refused(job: Job, tmp_path: Path) -> None:
    """As on a machine whose driver is too old: training on its processor would take months, and nobody would know."""
    refused = replace(job, folder=str(tmp_path / "gpu"))
    refused.write(tmp_path / "job.json")
    command = [sys.executable, "-m", "model.training", str(tmp_path / "job.json")]
    ended = subprocess.run(command, env={**os.environ, "JAX_PLATFORMS": "cuda"}, capture_output=True, text=True)
    assert ended.returncode == UNUSABLE, ended.stderr
    assert "koda: the GPUs of this machine cannot be used (" in ended.stderr and "version 580 or newer" in ended.stderr
