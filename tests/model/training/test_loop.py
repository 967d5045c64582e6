"""The train loop as a process: what it learns, and what a kill costs."""

import json
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
from model.files import write_json
from model.llama import Llama
from model.training import goodput
from model.training.job import Job
from model.training.protocol import (
    DONE,
    EVENTS,
    METRICS,
    PREEMPTED,
    ROLLED_BACK,
    UNUSABLE,
    WINDOWS,
    Heartbeat,
    lines,
)


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
def whole(job: Job) -> Job:
    """The same training, never interrupted."""
    assert start(job).wait() == DONE, Path(job.folder, "log").read_text()
    return job


def test_it_learns_and_says_so(whole: Job) -> None:
    metrics = lines(Path(whole.folder) / METRICS)
    losses = [line["loss"] for line in metrics if "loss" in line]
    heldout = [line["heldout_loss"] for line in metrics if "heldout_loss" in line]
    assert len(losses) == 60 and losses[0] == pytest.approx(6.24, abs=0.2)  # ln 512, and the embeddings' noise
    assert losses[-1] < 0.8 * losses[0] and heldout[-1] < heldout[0]
    assert arrays.facts(Path(whole.folder) / "checkpoints/60")["heldout_loss"] == heldout[-1]


@pytest.mark.parametrize("step", [3, 25, 47])
def test_a_kill_changes_nothing(whole: Job, tmp_path: Path, step: int) -> None:
    """kill -9 at any step: the second life ends with the very bits of the life that was never killed."""
    job = replace(whole, folder=str(tmp_path / "killed"))
    first = start(job)
    await_step(job, step)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    kept = [int(p.parent.name) for p in Path(job.folder).glob("checkpoints/*/COMMIT.json")]
    assert max(kept, default=0) >= step - 20 - 8  # at most the work since the last save (a few steps run ahead of it)
    assert start(job).wait() == DONE
    assert crc(job) == crc(whole)
    steps = [line["step"] for line in lines(Path(job.folder) / METRICS) if "loss" in line]
    assert steps == list(range(1, 61))  # each once, though some were done twice


def test_two_segments_are_one_training(whole: Job, tmp_path: Path) -> None:
    job = replace(whole, folder=str(tmp_path / "segments"))
    assert start(job, until=30).wait() == DONE
    assert start(job, until=20).wait() == DONE  # an earlier segment, asked for by a later life, is done
    assert start(job, until=60).wait() == DONE
    assert crc(job) == crc(whole)


def test_sigterm_saves_and_leaves(whole: Job, tmp_path: Path) -> None:
    job = replace(whole, folder=str(tmp_path / "stopped"))
    process = start(job)
    await_step(job, 7)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == PREEMPTED
    saved = [int(p.parent.name) for p in Path(job.folder).glob("checkpoints/*/COMMIT.json")]
    assert max(saved) >= 7
    assert start(job).wait() == DONE
    assert crc(job) == crc(whole)


def test_another_corpus_is_refused(whole: Job, tmp_path: Path) -> None:
    job = replace(whole, recipe=replace(whole.recipe, batch_size=4))
    copy = replace(job, folder=str(tmp_path / "other"))
    Path(copy.folder).symlink_to(whole.folder)
    process = start(copy)
    assert process.wait() == UNUSABLE
    assert "was trained on other data" in Path(copy.folder, "log").read_text()
    whole.write(Path(whole.folder) / "job.json")


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells of a parent's death on Linux only")
def test_the_trainer_leaves_when_its_parent_dies(whole: Job, tmp_path: Path) -> None:
    job = replace(whole, folder=str(tmp_path / "orphan"), recipe=replace(whole.recipe, steps=100_000))
    Path(job.folder).mkdir()
    job.write(Path(job.folder) / "job.json")
    code = f"""import subprocess, sys, time
subprocess.Popen([sys.executable, "-m", "model.training", {str(Path(job.folder) / "job.json")!r}, "100000"])
time.sleep(600)"""
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    await_step(job, 2)
    trainer = json.loads((Path(job.folder) / "heartbeat.json").read_text())["pid"]
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
    """One life of a training in which these batches give numbers that are not finite."""
    folder = Path(job.folder)
    folder.mkdir(exist_ok=True)
    job.write(folder / "job.json")
    code = POISONED.format(first=first, last=last)
    with (folder / "log").open("ab") as log:
        command = [sys.executable, "-c", code, str(folder / "job.json")]
        return subprocess.run(command, stdout=log, stderr=log).returncode


def test_one_bad_batch_is_skipped(whole: Job, tmp_path: Path) -> None:
    job = replace(whole, folder=str(tmp_path / "one"))
    assert poisoned(job, 30, 31) == DONE
    skipped = [line["step"] for line in lines(Path(job.folder) / EVENTS) if line["event"] == "skipped"]
    assert skipped == [31]
    losses = [line["loss"] for line in lines(Path(job.folder) / METRICS) if "loss" in line]
    assert len(losses) == 59 and losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(("first", "back_to"), [(47, 40), (38, 20)])
def test_many_bad_batches_are_stepped_over(whole: Job, tmp_path: Path, first: int, back_to: int) -> None:
    """Back to the last checkpoint, behind that window; the end is that of a run told to skip the window.

    In the second case a save falls due among the bad steps, and waits.
    """
    job = replace(whole, folder=str(tmp_path / "many"))
    assert poisoned(job, first, first + 5) == ROLLED_BACK
    windows = json.loads((Path(job.folder) / WINDOWS).read_text())
    assert windows[0][0] == back_to and len(windows) == 1
    assert first + 5 <= sum(windows[0]) <= first + 8
    assert poisoned(job, first, first + 5) == DONE
    told = replace(whole, folder=str(tmp_path / "told"))
    Path(told.folder).mkdir()
    (Path(told.folder) / WINDOWS).write_text((Path(job.folder) / WINDOWS).read_text())
    assert start(told).wait() == DONE
    assert crc(told) == crc(job) != crc(whole)


def test_weights_that_are_not_finite_are_refused(whole: Job, tmp_path: Path) -> None:
    """Nothing is trained from them, and no checkpoint is written."""
    model = Llama(whole.model, rngs=nnx.Rngs(0))
    weights.save(tmp_path / "weights", model)
    facts = arrays.facts(tmp_path / "weights")
    named = arrays.read(tmp_path / "weights")
    named["norm/scale"][3] = np.nan
    facts["arrays"]["norm/scale"]["crc32"] = arrays.checksum(named["norm/scale"])
    shutil.rmtree(tmp_path / "weights" / "arrays")
    with ocp.PyTreeCheckpointer() as orbax:
        orbax.save(tmp_path / "weights" / "arrays" / "0", named)
    write_json(tmp_path / "weights" / arrays.COMMIT, facts)
    job = replace(whole, folder=str(tmp_path / "job"), init=str(tmp_path / "weights"))
    assert start(job).wait() == UNUSABLE
    assert "norm/scale holds numbers that are not finite" in Path(job.folder, "log").read_text()
    assert not list(Path(job.folder).glob("checkpoints/*"))


def test_every_second_of_a_killed_training_is_accounted_for(whole: Job, tmp_path: Path) -> None:
    """What went where, over two lives with a kill between them, is the wall-clock from the first one's first moment to
    the last word of the second. What is around that, starting Python and ending it, nobody in it can know of.
    """
    job = replace(whole, folder=str(tmp_path / "killed"))
    began = time.time()
    first = start(job)
    await_step(job, 30)
    first.send_signal(signal.SIGKILL)
    first.wait()
    time.sleep(1)  # and it lies there for a while
    assert start(job).wait() == DONE
    spent = goodput.goodput(Path(job.folder))
    wall = time.time() - began
    events = lines(Path(job.folder) / EVENTS)
    first_moment = next(event["began"] for event in events if event["event"] == "spent")
    assert sum(spent.values()) == pytest.approx(events[-1]["time"] - first_moment, abs=0.2)
    assert sum(spent.values()) < wall
    assert {event["device"] for event in events if event["event"] in ("start", "resume")} == {"cpu"}
    assert min(spent[part] for part in ("training", "start and compile", "evaluation", "lost to rework")) > 0


def test_two_trainers_never_write_one_folder(whole: Job, tmp_path: Path) -> None:
    """Both are started; one trains, and the other waits for it to leave and then refuses. Nothing is done twice."""
    job = replace(whole, folder=str(tmp_path / "both"), recipe=replace(whole.recipe, steps=100_000))
    first = start(job, until=100_000)
    await_step(job, 5)
    impatient = "import sys; from model.training import __main__, loop; loop.LEAVING = 2.0; sys.exit(__main__.main())"
    command = [sys.executable, "-c", impatient]
    second = subprocess.run([*command, f"{job.folder}/job.json", "100000"], capture_output=True, text=True)
    assert second.returncode == UNUSABLE and f"is being worked on by process {first.pid}" in second.stderr
    first.send_signal(signal.SIGTERM)
    assert first.wait(20) == PREEMPTED
    losses = [line["step"] for line in lines(Path(job.folder) / METRICS) if "loss" in line]
    assert losses == sorted(set(losses))
