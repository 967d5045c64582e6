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

Diary = list[tuple[str, int]]


def state(step: int) -> dict[str, Any]:
    return {"w": jnp.full((64, 64), float(step)), "nested": {"n": jnp.int32(step)}}


def opened(folder: Path, diary: Diary, fingerprint: str = "data", keep: int = 2) -> Checkpoints:
    return Checkpoints(folder, fingerprint, lambda name, step, **more: diary.append((name, step)), keep=keep)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    checkpoints = opened(tmp_path, [])
    for step in (10, 20):
        checkpoints.save(step, state(step), permanent=True)
    checkpoints.wait()
    return tmp_path


def test_the_newest_comes_back(saved: Path) -> None:
    found = opened(saved, []).restore(state(0))
    assert found is not None and found[0] == 20
    np.testing.assert_array_equal(found[1]["w"], state(20)["w"])
    assert int(found[1]["nested"]["n"]) == 20


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


@pytest.mark.parametrize("damage", [flip, cut])
def test_a_broken_one_is_set_aside_and_the_older_taken(saved: Path, damage: Any) -> None:
    damage(saved / "20")
    diary: Diary = []
    found = opened(saved, diary).restore(state(0))
    assert found is not None and found[0] == 10
    assert diary == [("broken checkpoint", 20)]
    assert (saved / "20.broken").is_dir() and not (saved / "20").exists()


def test_without_its_commit_file_it_does_not_count(saved: Path) -> None:
    (saved / "20" / arrays.COMMIT).unlink()
    diary: Diary = []
    checkpoints = opened(saved, diary)
    found = checkpoints.restore(state(0))
    assert found is not None and found[0] == 10
    checkpoints.save(20, state(21), permanent=True)  # and the step is saved again over what was left
    checkpoints.wait()
    again = checkpoints.restore(state(0))
    assert again is not None and again[0] == 20 and float(again[1]["w"][0, 0]) == 21


def test_other_data_is_refused_with_both_fingerprints(saved: Path) -> None:
    with pytest.raises(KodaError, match=r"fingerprint data\).*\(other\)"):
        opened(saved, [], "other").restore(state(0))


def test_another_shape_is_refused(saved: Path) -> None:
    with pytest.raises(KodaError, match="another model"):
        opened(saved, []).restore({"w": jnp.zeros((2, 2)), "nested": {"n": jnp.int32(0)}})


def test_saves_are_verified_however_short_the_lives_are(tmp_path: Path) -> None:
    verified = []
    for step in range(1, 7):
        checkpoints = Checkpoints(tmp_path, "data", lambda *_, **__: None, keep=2, verify_every=3)
        checkpoints.restore(state(0))
        checkpoints.save(step, state(step), permanent=True)
        checkpoints.wait()
        verified.append(arrays.facts(tmp_path / str(step))["verified"])
    assert verified == [False, False, True] * 2


def test_a_temporary_save_goes_when_a_newer_one_is_there(tmp_path: Path) -> None:
    checkpoints = opened(tmp_path, [])
    for step, permanent in ((1, True), (2, False), (3, False), (4, True), (5, True), (6, False)):
        checkpoints.save(step, state(step), permanent=permanent)
    checkpoints.wait()
    assert checkpoints.steps() == [4, 5, 6]


def test_numbers_that_are_not_finite_never_reach_disk(saved: Path) -> None:
    checkpoints = opened(saved, [])
    checkpoints.save(30, {**state(30), "w": jnp.full((64, 64), jnp.nan)}, permanent=True)
    with pytest.raises(arrays.Broken, match="w holds numbers that are not finite"):
        checkpoints.wait()
    assert checkpoints.steps() == [10, 20]


def test_what_is_saved_is_what_stood_when_save_was_called(tmp_path: Path) -> None:
    """The step after a save writes over the same memory."""
    held = np.ones((256, 256), np.float32)
    checkpoints = opened(tmp_path, [])
    checkpoints.save(1, {"w": held}, permanent=True)
    held[:] = 7
    checkpoints.wait()
    found = checkpoints.restore({"w": held})
    assert found is not None and float(found[1]["w"].max()) == 1


def test_a_save_without_room_costs_the_save_and_not_the_training(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    diary: Diary = []
    checkpoints = opened(saved, diary)
    checkpoints.patience = 3600
    usage = shutil.disk_usage(saved)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        checkpoints.save(30, state(30), permanent=True)
        checkpoints.wait()
        assert diary == [("save failed", 30)] and checkpoints.steps() == [10, 20]
        checkpoints.patience = 0
        with pytest.raises(KodaError, match=r"the disk is full.*of step 20, stands"):
            checkpoints.save(30, state(30), permanent=True)
    checkpoints.save(30, state(30), permanent=True)
    checkpoints.wait()
    assert checkpoints.steps() == [20, 30] and checkpoints.failing_since is None


def test_a_disk_that_fills_while_it_is_written_leaves_no_half_checkpoint(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None: ...

        def save(self, path: Path, _: object) -> None:
            path.mkdir(parents=True)
            (path / "some").write_bytes(b"x")
            raise OSError(errno.ENOSPC, "No space left on device")

    diary: Diary = []
    checkpoints = opened(saved, diary)
    checkpoints.patience = 3600
    monkeypatch.setattr(arrays, "_orbax", Full)
    checkpoints.save(30, state(30), permanent=True)
    checkpoints.wait()
    assert diary == [("save failed", 30)]
    assert sorted(p.name for p in saved.iterdir()) == ["10", "20"]


def test_a_save_that_reads_back_otherwise_does_not_count(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte turns over between the write and the reading back: the save is set aside, and the next one counts."""
    real = arrays.read_parts

    def damaged(folder: Path, described: Any) -> Any:
        flip(folder)
        return real(folder, described)

    diary: Diary = []
    checkpoints = Checkpoints(saved, "data", lambda name, step, **_: diary.append((name, step)), keep=2, patience=60)
    with monkeypatch.context() as disk:
        disk.setattr(arrays, "read_parts", damaged)
        checkpoints.save(30, state(30), permanent=True)
        checkpoints.wait()
    assert diary == [("save failed", 30)] and checkpoints.steps() == [10, 20] and (saved / "30.broken").is_dir()
    checkpoints.save(30, state(30), permanent=True)
    checkpoints.wait()
    assert checkpoints.steps() == [20, 30]
