"""Copies at a second place, made while a training goes on, and what becomes of a training that has lost its disk."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from model import arrays
from model.exit_codes import DONE
from model.files import write_json
from model.training.heartbeat import Heartbeat
from model.training.job import Job
from model.training.records import WINDOWS, Event, read_events
from model.training.second_place import SecondPlace
from tasks.copies import Copier, address, copied, forget_earlier
from tests.s3 import BUCKET, point_to, s3_server


def trainer(job: Job, until: int = 60) -> subprocess.Popen:
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    job.write(folder / "job.json")
    return subprocess.Popen([sys.executable, "-m", "model.training", str(folder / "job.json"), str(until)])


def await_(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def crc(job: Job) -> dict[str, int]:
    described = arrays.facts(Path(job.folder) / "checkpoints" / "60")["arrays"]
    return {name: array["crc32"] for name, array in described.items()}


@pytest.mark.chaos
def test_training_whose_disk_is_lost_goes_on_from_the_copy_with_the_same_bits(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with data that it had stepped over: which, is in the checkpoint."""
    with s3_server(monkeypatch):
        fsspec.filesystem("s3").mkdir(BUCKET)
        place = f"s3://{BUCKET}/run/pretrain-key"
        windows = [[5, 3]]
        whole = replace(job, folder=str(tmp_path / "whole"))
        lost = replace(job, folder=str(tmp_path / "lost" / "pretrain"), second_place=place)
        for one in (whole, lost):
            write_json(Path(one.folder) / WINDOWS, windows)
        assert trainer(whole).wait() == DONE
        with copied(Path(lost.folder), place):
            first = trainer(lost, 40)
            assert first.wait() == DONE
        assert SecondPlace(place).steps()[-1] == 40
        shutil.rmtree(tmp_path / "lost")
        assert trainer(lost).wait() == DONE
    events = read_events(Path(lost.folder))
    assert [record.step for record in events if record.event in (Event.FETCHED, Event.RESUME)] == [40, 40]
    assert crc(lost) == crc(whole)


def test_place_that_is_away_stops_nothing_and_is_told_of_once(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = replace(job, folder=str(tmp_path / "run" / "pretrain"))
    assert trainer(here, 20).wait() == DONE
    with s3_server(monkeypatch) as server:
        copier = Copier(Path(here.folder), f"s3://{BUCKET}/x")
        point_to(monkeypatch, "http://127.0.0.1:9")
        assert [copier.copy_newest() for _ in range(2)] == [False, False]
        point_to(monkeypatch, server)
        assert copier.copy_newest() is False  # there is no such bucket
        fsspec.filesystem("s3").mkdir(BUCKET)
        assert copier.copy_newest() is True
        assert SecondPlace(copier.second_place).steps() == [20]
        failures = [record for record in read_events(Path(here.folder)) if record.event is Event.COPY_FAILED]
        assert [record.step for record in failures] == [20]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["pretrain"]  # no links are left


def test_training_does_not_wait_for_a_place_that_hangs(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SecondPlace, "put", lambda *_: time.sleep(600))
    monkeypatch.setattr("tasks.copies.LAST", 0.5)
    here = replace(job, folder=str(tmp_path / "run" / "pretrain"))
    began = time.monotonic()
    with copied(Path(here.folder), str(tmp_path / "there")):
        training = trainer(here)
        assert training.wait() == DONE
        took = time.monotonic() - began
    assert time.monotonic() - began < took + 5
    assert (Heartbeat.read(Path(here.folder)) or {})["step"] == 60


def test_address_names_the_run_and_what_the_training_is_built_of(tmp_path: Path) -> None:
    training = tmp_path / "mine" / "pretrain"
    write_json(training / "building.json", {"key": "0123456789abcdef"})
    assert address("s3://bucket/path/", training) == "s3://bucket/path/mine/pretrain-0123456789ab"
    assert address("", training) == ""


def test_rebuilt_training_does_not_go_on_from_the_copies_of_the_one_before(tmp_path: Path) -> None:
    training, there = tmp_path / "runs" / "mine" / "pretrain", tmp_path / "there"
    write_json(training / "building.json", {"key": "0123456789abcdef"})
    place = address(str(there), training)
    write_json(Path(place) / "40" / arrays.COMMIT, {})
    forget_earlier(training, place)
    assert SecondPlace(place).steps() == [40]  # a new disk: nothing was set aside
    (training.parent / "pretrain.01234567").mkdir()
    forget_earlier(training, place)
    assert SecondPlace(place).steps() == []
