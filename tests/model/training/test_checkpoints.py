import errno
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from model import arrays
from model.errors import KodaError
from model.training.checkpoints import Checkpoints
from model.training.records import Event

Log = list[tuple[Event, int]]


def state(step: int) -> dict[str, Any]:
    return {"w": jnp.full((64, 64), float(step)), "nested": {"n": jnp.int32(step)}}


def opened(folder: Path, log: Log, fingerprint: str = "data", keep: int = 2) -> Checkpoints:
    return Checkpoints(folder, fingerprint, lambda event, step, **more: log.append((event, step)), keep=keep)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    checkpoints = opened(tmp_path, [])
    for step in (10, 20):
        checkpoints.save(step, state(step), permanent=True)
    checkpoints.wait()
    return tmp_path


def test_newest_checkpoint_is_restored(saved: Path) -> None:
    restored = opened(saved, []).restore(state(0))
    assert restored is not None and restored[0] == 20
    np.testing.assert_array_equal(restored[1]["w"], state(20)["w"])
    assert int(restored[1]["nested"]["n"]) == 20


def largest(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(folder: Path) -> None:
    path = largest(folder)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def cut(folder: Path) -> None:
    path = largest(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_commit_file(folder: Path) -> None:
    path = folder / arrays.COMMIT
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty_commit_file(folder: Path) -> None:
    (folder / arrays.COMMIT).write_text("{}")


@pytest.mark.parametrize("damage", [flip, cut, cut_commit_file, empty_commit_file])
def test_corrupt_checkpoint_is_set_aside_and_an_older_one_restored(saved: Path, damage: Any) -> None:
    damage(saved / "20")
    log: Log = []
    restored = opened(saved, log).restore(state(0))
    assert restored is not None and restored[0] == 10
    assert log == [(Event.CORRUPT, 20)]
    assert (saved / "20.corrupt").is_dir() and not (saved / "20").exists()


def test_older_checkpoint_whose_commit_file_is_damaged_ends_no_training(saved: Path) -> None:
    cut_commit_file(saved / "10")
    checkpoints = opened(saved, [])
    for step in (30, 40):
        checkpoints.save(step, state(step), permanent=True)
    checkpoints.wait()
    assert checkpoints.steps() == [30, 40]


def test_checkpoint_without_its_commit_file_is_not_restored(saved: Path) -> None:
    (saved / "20" / arrays.COMMIT).unlink()
    log: Log = []
    checkpoints = opened(saved, log)
    restored = checkpoints.restore(state(0))
    assert restored is not None and restored[0] == 10
    checkpoints.save(20, state(21), permanent=True)  # and the step is saved again over what was left
    checkpoints.wait()
    restored = checkpoints.restore(state(0))
    assert restored is not None and restored[0] == 20 and float(restored[1]["w"][0, 0]) == 21


def test_other_data_is_refused_with_both_fingerprints(saved: Path) -> None:
    with pytest.raises(KodaError, match=r"fingerprint data\).*\(other\)"):
        opened(saved, [], "other").restore(state(0))


def test_another_shape_is_refused(saved: Path) -> None:
    with pytest.raises(KodaError, match="another model"):
        opened(saved, []).restore({"w": jnp.zeros((2, 2)), "nested": {"n": jnp.int32(0)}})


def test_saves_are_verified_however_short_the_attempts_are(tmp_path: Path) -> None:
    verified = []
    for step in range(1, 7):
        checkpoints = Checkpoints(tmp_path, "data", lambda *_, **__: None, keep=2, verify_every=3)
        checkpoints.restore(state(0))
        checkpoints.save(step, state(step), permanent=True)
        checkpoints.wait()
        verified.append(arrays.facts(tmp_path / str(step))["verified"])
    assert verified == [False, False, True] * 2


def test_temporary_save_is_removed_once_there_is_a_newer_one(tmp_path: Path) -> None:
    checkpoints = opened(tmp_path, [])
    for step, permanent in ((1, True), (2, False), (3, False), (4, True), (5, True), (6, False)):
        checkpoints.save(step, state(step), permanent=permanent)
    checkpoints.wait()
    assert checkpoints.steps() == [4, 5, 6]


def test_numbers_that_are_not_finite_never_reach_the_disk(saved: Path) -> None:
    checkpoints = opened(saved, [])
    checkpoints.save(30, {**state(30), "w": jnp.full((64, 64), jnp.nan)}, permanent=True)
    with pytest.raises(arrays.Corrupt, match=r"w .* not finite"):
        checkpoints.wait()
    assert checkpoints.steps() == [10, 20]


def test_state_is_saved_as_it_was_when_save_was_called(tmp_path: Path) -> None:
    """The step after a save writes over the same memory."""
    array = np.ones((256, 256), np.float32)
    checkpoints = opened(tmp_path, [])
    checkpoints.save(1, {"w": array}, permanent=True)
    array[:] = 7
    checkpoints.wait()
    restored = checkpoints.restore({"w": array})
    assert restored is not None and float(restored[1]["w"].max()) == 1


def test_save_without_room_costs_the_save_and_not_the_training(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log: Log = []
    checkpoints = opened(saved, log)
    checkpoints.patience = 3600
    usage = shutil.disk_usage(saved)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        checkpoints.save(30, state(30), permanent=True)
        checkpoints.wait()
        assert log == [(Event.SAVE_FAILED, 30)] and checkpoints.steps() == [10, 20]
        checkpoints.patience = 0
        with pytest.raises(KodaError, match=r"the disk is full.*of step 20, is kept"):
            checkpoints.save(30, state(30), permanent=True)
    checkpoints.save(30, state(30), permanent=True)
    checkpoints.wait()
    assert checkpoints.steps() == [20, 30] and checkpoints.failing_since is None


def test_disk_that_fills_during_a_save_leaves_no_half_checkpoint(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None: ...

        def save(self, path: Path, _: object) -> None:
            path.mkdir(parents=True)
            (path / "some").write_bytes(b"x")
            raise OSError(errno.ENOSPC, "No space left on device")

    log: Log = []
    checkpoints = opened(saved, log)
    checkpoints.patience = 3600
    monkeypatch.setattr(arrays, "_orbax", Full)
    checkpoints.save(30, state(30), permanent=True)
    checkpoints.wait()
    assert log == [(Event.SAVE_FAILED, 30)]
    assert sorted(p.name for p in saved.iterdir()) == ["10", "20"]


def test_save_that_reads_back_differently_is_set_aside(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bit flips between the write and the verification: the save is set aside, and the next one counts."""
    real = arrays.read_parts

    def damaged(folder: Path, described: Any) -> Any:
        flip(folder)
        return real(folder, described)

    log: Log = []
    checkpoints = Checkpoints(saved, "data", lambda event, step, **_: log.append((event, step)), keep=2, patience=60)
    with monkeypatch.context() as disk:
        disk.setattr(arrays, "read_parts", damaged)
        checkpoints.save(30, state(30), permanent=True)
        checkpoints.wait()
    assert log == [(Event.SAVE_FAILED, 30)] and checkpoints.steps() == [10, 20] and (saved / "30.corrupt").is_dir()
    checkpoints.save(30, state(30), permanent=True)
    checkpoints.wait()
    assert checkpoints.steps() == [20, 30]
