from dataclasses import replace
from pathlib import Path

from pydantic import Field

from model.figures import CheckpointFigures, PretrainFigures
from model.files import read_json, write_json
from tasks.runs.record import RECORD, Built, outputs_intact, read_built
from tasks.runs.up_to_date import stage_key, up_to_date
from tasks.section import OPERATIONAL, Section

BASE = Built("pretrain", Path("x"), "k1", PretrainFigures(parameters=1), "2026-01-01T00:00:00Z")


class Settings(Section):
    size: int = 1
    """Decides the result."""
    workers: int = Field(1, json_schema_extra=OPERATIONAL)
    """Decides how long it takes."""


def recorded(run: Path, stage: str, key: str, built_from: dict[str, str] | None = None) -> None:
    """A finished stage with one file, as `Run.build` records it."""
    (run / stage).mkdir(parents=True, exist_ok=True)
    (run / stage / "file.txt").write_text("text")
    digest = "982d9e3eb996f559e633f4d194def3761d909f5a3b647d1a851fead67c32c9d1"
    write_json(
        run / stage / RECORD,
        {
            "key": key,
            "finished": "2026-01-02T00:00:00Z",
            "figures": CheckpointFigures(parameters=1),
            "built_from": built_from or {},
            "outputs": {"file.txt": {"size": 4, "sha256": digest}},
        },
    )


def test_key_follows_settings_version_and_inputs() -> None:
    key = stage_key("sft", 1, (Settings(), BASE))
    changed = {
        stage_key("sft", 1, (Settings(size=2), BASE)),
        stage_key("sft", 1, (Settings(), replace(BASE, key="k2"))),
        stage_key("sft", 2, (Settings(), BASE)),
        stage_key("extend", 1, (Settings(), BASE)),
    }
    assert len(changed) == 4 and key not in changed


def test_key_is_the_same_whatever_decides_no_result() -> None:
    elsewhere = replace(BASE, folder=Path("y"), figures=PretrainFigures(parameters=2), finished="2026-01-03T00:00:00Z")
    assert stage_key("sft", 1, (Settings(), BASE)) == stage_key("sft", 1, (Settings(workers=9), elsewhere))


def test_stage_is_up_to_date_under_its_own_key_only(tmp_path: Path) -> None:
    assert up_to_date(tmp_path, "checkpoint", "k", ()) is None
    recorded(tmp_path, "checkpoint", "k")
    assert up_to_date(tmp_path, "checkpoint", "k", ()) == read_built(tmp_path, "checkpoint")
    assert up_to_date(tmp_path, "checkpoint", "other", ()) is None


def test_stage_is_stale_when_an_output_was_changed_or_removed(tmp_path: Path) -> None:
    for damage in (lambda file: file.write_text("Text"), lambda file: file.unlink()):  # "Text": same size, other bytes
        recorded(tmp_path, "checkpoint", "k")
        assert up_to_date(tmp_path, "checkpoint", "k", ()) is not None
        damage(tmp_path / "checkpoint/file.txt")
        assert not outputs_intact(tmp_path / "checkpoint")
        assert up_to_date(tmp_path, "checkpoint", "k", ()) is None


def test_stage_is_up_to_date_beside_a_file_that_it_did_not_record(tmp_path: Path) -> None:
    recorded(tmp_path, "checkpoint", "k")
    write_json(tmp_path / "checkpoint/extra.json", {})
    assert outputs_intact(tmp_path / "checkpoint") and up_to_date(tmp_path, "checkpoint", "k", ()) is not None


def test_stage_is_stale_when_an_input_was_rebuilt(tmp_path: Path) -> None:
    recorded(tmp_path, "checkpoint", "k", {"pretrain": BASE.finished})
    assert up_to_date(tmp_path, "checkpoint", "k", (Settings(), BASE)) is not None
    rebuilt = replace(BASE, finished="2026-01-03T00:00:00Z")  # under the same key
    assert up_to_date(tmp_path, "checkpoint", "k", (Settings(), rebuilt)) is None


def test_stage_is_stale_when_its_figures_are_of_another_version(tmp_path: Path) -> None:
    recorded(tmp_path, "checkpoint", "k")
    record = read_json(tmp_path / "checkpoint" / RECORD)
    write_json(tmp_path / "checkpoint" / RECORD, {**record, "figures": {"weights": 1}})
    assert read_built(tmp_path, "checkpoint") is None and up_to_date(tmp_path, "checkpoint", "k", ()) is None
