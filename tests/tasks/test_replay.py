"""Steps that are trained again give the bits that are there, and other bits are found."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from model import arrays
from model.errors import KodaError
from model.exit_codes import DONE
from model.files import committed_steps
from model.training.job import Job
from model.training.second_place import SecondPlace
from tasks.replay import replay, span


@pytest.fixture(scope="module")
def training(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished training, with checkpoints at steps 40 and 60."""
    folder = tmp_path_factory.mktemp("run") / "pretrain"
    folder.mkdir()
    there = folder.parent / "there"
    replace(job, folder=str(folder), second_place=str(there)).write(folder / "job.json")
    command = [sys.executable, "-m", "model.training", str(folder / "job.json")]
    assert subprocess.run(command).returncode == DONE
    SecondPlace(str(there)).put(folder / "checkpoints/60")  # which a replay must not go on from
    return folder


def test_steps_that_are_trained_again_are_the_same_and_nothing_else_changes(training: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in training.rglob("*")}
    differ, count = replay(training, 40, 60)
    assert differ == [] and count > 10
    assert {path: path.stat().st_mtime_ns for path in training.rglob("*")} == before
    assert not (training.parent / ".replay").exists()


def test_bit_that_flipped_in_the_weights_in_memory_is_found_with_its_array(training: Path, tmp_path: Path) -> None:
    """The checkpoint has it with a right checksum, as every later one would have."""
    copy = tmp_path / "pretrain"
    shutil.copytree(training, copy)
    folder = copy / "checkpoints" / "60"
    named, facts = arrays.read(folder), arrays.facts(folder)
    hit = next(name for name in named if name.startswith("params/") and "query" in name)
    named[hit] = named[hit].copy()
    named[hit].reshape(-1).view("uint32")[3] ^= 1 << 9
    arrays.write(folder, named, **{key: value for key, value in facts.items() if key not in ("arrays", "verified")})
    assert replay(copy, 40, 60)[0] == [hit]


def test_steps_without_a_checkpoint_are_refused_with_those_that_have_one(training: Path, tmp_path: Path) -> None:
    assert committed_steps(training / "checkpoints") == [40, 60]
    assert span(training, "") == span(training, "40:60") == (40, 60)
    for asked in ("60:40", "40:50", "20:60", "40", "a:b", "40:60:80"):
        with pytest.raises(KodaError, match=rf"--replay {asked}: .*has those of 40, 60"):
            span(training, asked)
    with pytest.raises(KodaError, match=r"two checkpoints.*no step"):
        span(tmp_path, "")
