"""Snapshots where there is no room, and what a rollback removes."""

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from model import arrays
from model.training.job import Job
from model.training.records import SNAPSHOTS, Event
from model.training.snapshots import Snapshots, taken

PARAMS = {"embedding": jnp.ones((64, 8))}


@pytest.fixture
def events() -> list[tuple[Any, ...]]:
    return []


@pytest.fixture
def snapshots(job: Job, tmp_path: Path, events: list[tuple[Any, ...]]) -> Snapshots:
    own = replace(job, folder=str(tmp_path), recipe=replace(job.recipe, steps=4, snapshots=24))
    return Snapshots(own, lambda event, step, **more: events.append((event, step, more["cause"])))


def test_snapshot_that_leaves_no_room_for_a_checkpoint_is_left_out(
    snapshots: Snapshots, events: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2_000))
    snapshots.take(0, PARAMS, checkpoint=900)  # 1,024 bytes and 900
    snapshots.take(1, PARAMS, checkpoint=1_000)
    snapshots.wait()
    assert taken(snapshots.folder) == [0] and [(event, step) for event, step, _ in events] == [(Event.SAVE_FAILED, 1)]
    assert "the snapshot is left out" in events[0][2]


def test_each_is_taken_once_and_a_rollback_removes_later_ones(snapshots: Snapshots) -> None:
    for step in range(5):
        if snapshots.due(step):
            snapshots.take(step, {"embedding": step * PARAMS["embedding"]}, checkpoint=0)
    snapshots.wait()
    assert taken(snapshots.folder) == [0, 1, 2, 3, 4] and not any(map(snapshots.due, range(5)))
    assert (arrays.read(snapshots.folder / SNAPSHOTS / "2")["embedding"] == 2).all()
    snapshots.drop_after(1)
    assert taken(snapshots.folder) == [0, 1] and [step for step in range(5) if snapshots.due(step)] == [2, 3, 4]
