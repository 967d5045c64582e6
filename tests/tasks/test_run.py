from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import Field

from model.errors import KodaError
from model.files import read_json, write_json
from tasks.run import WITHOUT_PROGRESS, Built, Run, read_built, whole
from tasks.section import OPERATIONAL, Section


class Settings(Section):
    size: int = 1
    """Decides what is made."""
    workers: int = Field(1, json_schema_extra=OPERATIONAL)
    """Decides how."""


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KODA_RUNS", str(tmp_path / "runs"))


def make(folder: Path) -> dict[str, Any]:
    (folder / "made.txt").write_text("made")
    return {"figure": 1}


def test_a_key_follows_settings_version_and_inputs() -> None:
    with Run("r") as run:
        base = run.key("sft", 1, (Settings(), Built("pretrain", Path("x"), "k1")))
        assert base == run.key("sft", 1, (Settings(workers=9), Built("pretrain", Path("y"), "k1", {"f": 1})))
        changed = {
            run.key("sft", 1, (Settings(size=2), Built("pretrain", Path("x"), "k1"))),
            run.key("sft", 1, (Settings(), Built("pretrain", Path("x"), "k2"))),
            run.key("sft", 2, (Settings(), Built("pretrain", Path("x"), "k1"))),
            run.key("extend", 1, (Settings(), Built("pretrain", Path("x"), "k1"))),
        }
        assert len(changed) == 4 and base not in changed


def test_what_was_made_of_something_that_was_built_anew_does_not_stand() -> None:
    with Run("r") as run:
        base = run.build("checkpoint", "k", False, make)
        run.build("sft", "k", False, make, (base,))
        assert run.standing("sft", "k", (base,)) is not None
        assert run.standing("sft", "k", (replace(base, finished="2020-01-01T00:00:00Z"),)) is None


def test_what_stands_is_found_and_what_is_damaged_is_not() -> None:
    with Run("r") as run:
        built = run.build("sft", "k", False, make)
        assert run.standing("sft", "k") == built == read_built(run.folder, "sft")
        assert run.standing("sft", "other") is None
        (built / "made.txt").write_text("Made")  # same size, other bytes
        assert not whole(built.folder) and run.standing("sft", "k") is None


def test_a_failed_build_leaves_what_stood_there() -> None:
    def fail(folder: Path) -> dict[str, Any]:
        make(folder)
        raise RuntimeError

    with Run("r") as run:
        built = run.build("sft", "k", False, make)
        with pytest.raises(RuntimeError):
            run.build("sft", "k2", False, fail)
        assert run.standing("sft", "k") == built


def test_a_stage_that_resumes_finds_its_own_work_and_sets_other_work_aside() -> None:
    def look(folder: Path) -> dict[str, Any]:
        seen = sorted(path.name for path in folder.iterdir())
        (folder / "work").write_text("")
        return {"seen": seen}

    def interrupted(folder: Path) -> dict[str, Any]:
        look(folder)
        raise RuntimeError

    with Run("r") as run:
        with pytest.raises(RuntimeError):
            run.build("pretrain", "key-one", True, interrupted)
        assert run.build("pretrain", "key-one", True, look).figures["seen"] == ["building.json", "work"]
        assert run.build("pretrain", "key-two", True, look).figures["seen"] == ["building.json"]
        assert (run.folder / "pretrain.key-one" / "work").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full, a disk that is always full")
@pytest.mark.parametrize("write", [np.save, lambda file, array: file.write(array.tobytes())])
def test_a_full_disk_is_said_and_nothing_is_lost(write: Callable) -> None:
    def fill(folder: Path) -> dict[str, Any]:
        with Path("/dev/full").open("wb") as file:
            write(file, np.zeros(1 << 20))
        return {}

    with Run("r") as run:
        built = run.build("tokenize", "k", False, make)
        with pytest.raises(KodaError, match="disk is full"):
            run.build("tokenize", "k2", False, fill)
        assert run.standing("tokenize", "k") == built


def test_one_run_one_process() -> None:
    with Run("r"), pytest.raises(KodaError, match=r"runs/r is being worked on by process \d+ since"), Run("r"):
        pass
    with Run("r"):
        pass


def test_from_takes_what_stands_and_builds_the_rest() -> None:
    with Run("r") as run:
        tokens = run.build("tokenize", "k", False, make)
        run.build("pretrain", "k", False, make)
    with Run("r", start="pretrain") as run:
        assert run.standing("tokenize", "another key") == tokens
        assert run.standing("pretrain", "k") is None
    with Run("r", start="convert") as run, pytest.raises(KodaError, match="sft as it stands"):
        run.standing("sft", "k")


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "x" * 65, "a\nb"])
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(KodaError, match="cannot be a run's name"):
        Run(name)


def test_the_record_names_every_file() -> None:
    with Run("r") as run:
        built = run.build("sft", "k", False, make)
    record = read_json(built / "stage.json")
    assert record["outputs"] == {"made.txt": {"size": 4, "sha256": record["outputs"]["made.txt"]["sha256"]}}
    assert record["key"] == "k" and record["figures"] == {"figure": 1} and "jax" in record["versions"]
    write_json(built / "extra.json", {})
    assert whole(built.folder)  # a file more is no damage


def test_a_run_whose_process_keeps_dying_is_given_up(tmp_path: Path) -> None:
    """What starts crashed runs again must not do so for ever: the fourth life without progress is refused."""
    for _ in range(WITHOUT_PROGRESS):
        Run("dying").__enter__()._lock.close()  # type: ignore[union-attr]  # it dies: nothing is written at its end
    with pytest.raises(KodaError, match=f"died {WITHOUT_PROGRESS} times without getting further"):
        Run("dying").__enter__()
    with Run("dying"):  # a person who starts it again has a new budget
        pass


@pytest.mark.parametrize("progress", ["pretrain/checkpoints/{}/COMMIT.json", "tokenize/.blocks/tiktoken/{}.json"])
def test_a_run_that_gets_further_may_die_often(tmp_path: Path, progress: str) -> None:
    for number in range(3 * WITHOUT_PROGRESS):
        Run("advancing").__enter__()._lock.close()  # type: ignore[union-attr]
        made = tmp_path / "runs/advancing" / progress.format(number)
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_text("{}")
