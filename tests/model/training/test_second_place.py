"""Checkpoints at a second place: a folder, and a bucket on a real S3 server."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import arrays
from model.errors import KodaError
from model.files import COMMIT, committed_steps
from model.training.checkpoints import Checkpoints
from model.training.records import Event
from model.training.second_place import SecondPlace, unsupported
from tests.s3 import BUCKET, Line, point_to, s3_server

Log = list[tuple[Event, int, str]]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, s3_server(patch) as address:
        fsspec.filesystem("s3").mkdir(BUCKET)
        yield address


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty second place."""
    if request.param == "folder":
        return str(tmp_path / "there")
    request.getfixturevalue("server")
    return f"s3://{BUCKET}/{tmp_path.name}"


def state(step: int) -> dict[str, Any]:
    """Numbers that do not compress."""
    return {"w": jax.random.normal(jax.random.key(step), (64, 64)), "n": jnp.int32(step)}


def opened(folder: Path, place: str = "", log: Log | None = None) -> Checkpoints:
    def note(event: Event, step: int, cause: str = "", **_: Any) -> None:
        if log is not None:
            log.append((event, step, cause))

    return Checkpoints(folder, "data", note, keep=9, second_place=place)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with checkpoints of the steps 10, 20 and 30."""
    checkpoints = opened(tmp_path / "here")
    for step in (10, 20, 30):
        checkpoints.save(step, state(step), permanent=True)
    checkpoints.wait()
    return tmp_path / "here"


def damage(folder: Path) -> None:
    largest = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def test_newest_copies_are_kept_and_read_back_to_the_bit(saved: Path, place: str, tmp_path: Path) -> None:
    there = SecondPlace(place)
    assert there.steps() == []
    for step in (10, 20, 30):
        there.put(saved / str(step))
        there.prune(step)
    assert there.steps() == [20, 30]
    there.get(30, tmp_path / "new")
    assert committed_steps(tmp_path / "new") == [30]
    read = arrays.read(tmp_path / "new/30")
    np.testing.assert_array_equal(read["w"], state(30)["w"])
    there.clear()
    assert there.steps() == []


def test_half_a_copy_does_not_count_and_is_replaced(saved: Path, place: str, tmp_path: Path) -> None:
    there, half = SecondPlace(place), tmp_path / "half" / "30"
    shutil.copytree(saved / "30", half)
    there.put(half)
    there.files.rm_file(f"{there.root}/30/{COMMIT}")
    assert there.steps() == []
    there.put(saved / "30")
    assert there.steps() == [30]


def test_restore_walks_over_both_places_from_the_newest_on(saved: Path, place: str, tmp_path: Path) -> None:
    there = SecondPlace(place)
    there.put(saved / "20")
    there.put(saved / "30")
    log: Log = []
    damage(saved / "30")
    restored = opened(saved, place, log).restore(state(0))  # of 30 the copy is intact
    assert restored is not None and restored[0] == 30 and (restored[1]["w"] == state(30)["w"]).all()
    assert [entry[:2] for entry in log] == [(Event.CORRUPT, 30), (Event.FETCHED, 30)]
    shutil.rmtree(saved)
    restored = opened(saved, place, log).restore(state(0))  # the disk is a new one
    assert restored is not None and restored[0] == 30
    damage(saved / "30")
    broken = tmp_path / "broken" / "30"
    shutil.copytree(saved / "30", broken)
    there.put(broken)
    restored = opened(saved, place, log).restore(state(0))  # both of 30 are corrupt
    assert restored is not None and restored[0] == 20
    assert {path.name for path in saved.iterdir()} == {"20", "30.corrupt"}  # of the copy nothing is kept


def test_copy_of_a_step_that_an_intact_training_has_gone_back_behind_is_not_taken(saved: Path, place: str) -> None:
    there = SecondPlace(place)
    there.put(saved / "30")
    shutil.rmtree(saved / "30")
    restored = opened(saved, place).restore(state(0))
    assert restored is not None and restored[0] == 20
    there.put(saved / "20")
    there.prune(20)
    assert there.steps() == [20]


def test_place_that_cannot_be_reached_is_named_and_what_is_here_is_restored(
    saved: Path, monkeypatch: pytest.MonkeyPatch, server: str, tmp_path: Path
) -> None:
    """Where nothing is here, and this may be a new disk, it is an error: hours would be trained again."""
    place, log = f"s3://{BUCKET}-gone/x", []
    with pytest.raises(FileNotFoundError):
        SecondPlace(place).put(saved / "30")
    point_to(monkeypatch, "http://127.0.0.1:9")
    restored = opened(saved, place, log).restore(state(0))
    assert restored is not None and restored[0] == 30 and not log  # it is not asked
    damage(saved / "30")
    restored = opened(saved, place, log).restore(state(0))
    assert restored is not None and restored[0] == 20
    (event, _, cause) = log[-1]
    assert event is Event.COPY_FAILED and cause.startswith(f"{place}: ") and "secret" not in cause
    for _ in range(2):
        with pytest.raises(KodaError, match=f"{place} cannot be reached"):
            opened(tmp_path / "new", place, log).restore(state(0))
    point_to(monkeypatch, server)


def test_keys_that_are_refused_are_an_error_without_the_keys(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server(monkeypatch, INITIAL_NO_AUTH_ACTION_COUNT="0"):
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
        with pytest.raises(PermissionError) as refused:
            SecondPlace(f"s3://{BUCKET}/x").put(saved / "30")
        assert "very-secret" not in str(refused.value)


def test_connection_that_drops_leaves_no_checkpoint_behind_and_the_next_try_does(
    saved: Path, monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    line = Line(server)
    point_to(monkeypatch, line.address)
    there = SecondPlace(f"s3://{BUCKET}/dropped")
    there.put(saved / "20")
    line.limit = 8000
    with pytest.raises(Exception, match=r"\w"):
        there.put(saved / "30")
    line.limit = 0
    assert line.cuts and there.steps() == [20]
    there.put(saved / "30")
    assert there.steps() == [20, 30]
    point_to(monkeypatch, server)


def test_address_that_nothing_can_be_copied_to_is_refused() -> None:
    assert unsupported("/data/copies") == unsupported("copies") == unsupported("s3://bucket/path") == ""
    assert "nothing knows s4://" in unsupported("s4://bucket/path")
    assert "credentials" in unsupported("s3://key:secret@bucket/path")
