from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import Field

from model.errors import KodaError
from model.figures import CheckpointFigures, PretrainFigures
from model.files import read_json, write_json
from tasks.runs.record import RECORD, Built, changed_outputs, read_built
from tasks.runs.up_to_date import replaced_input, stage_key, up_to_date
from tasks.section import ADDED, OPERATIONAL, Section

BASE = Built("pretrain", Path("x"), "k1", PretrainFigures(parameters=1), "2026-01-01T00:00:00Z")


class Settings(Section):
    size: int = 1
    """Decides the result."""
    workers: int = Field(1, json_schema_extra=OPERATIONAL)
    """Decides how long it takes."""


class Later(Settings):
    depth: int = Field(0, json_schema_extra=ADDED)
    """Decides the result too; there was none before."""


def recorded(
    run: Path, stage: str, key: str, built_from: dict[str, str] | None = None, reads: dict[str, str] | None = None
) -> None:
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
            "reads": reads or {},
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


def test_setting_that_came_later_changes_no_key_until_it_is_set() -> None:
    """A new version of Koda must not make a result of the last one stale."""
    keys = [stage_key("sft", 1, (settings, BASE)) for settings in (Settings(), Later(), Later(depth=1))]
    assert keys[0] == keys[1] != keys[2]


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
        assert changed_outputs(tmp_path / "checkpoint") == ["file.txt"]
        assert up_to_date(tmp_path, "checkpoint", "k", ()) is None


def test_stage_is_up_to_date_beside_a_file_that_it_did_not_record(tmp_path: Path) -> None:
    recorded(tmp_path, "checkpoint", "k")
    write_json(tmp_path / "checkpoint/extra.json", {})
    assert not changed_outputs(tmp_path / "checkpoint") and up_to_date(tmp_path, "checkpoint", "k", ()) is not None


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


DONE = "2026-01-02T00:00:00Z"  # when `recorded` stages were finished


@pytest.mark.parametrize(
    ("key", "finished", "replaced"),
    [("k1", DONE, ""), ("k2", DONE, "sft"), ("k1", "2026-01-03T00:00:00Z", "sft"), (None, DONE, "sft")],
    ids=["as it was", "under another key", "rebuilt under the same key", "being rebuilt"],
)
def test_input_that_was_replaced_is_named_by_all_that_was_built_from_it(
    tmp_path: Path, key: str | None, finished: str, replaced: str
) -> None:
    """convert reads extend, which reads sft."""
    recorded(tmp_path, "extend", "k2", {"sft": DONE}, {"sft": "k1"})
    recorded(tmp_path, "convert", "k3", {"extend": DONE}, {"extend": "k2"})
    if key:
        recorded(tmp_path, "sft", key)
        write_json(tmp_path / "sft" / RECORD, {**read_json(tmp_path / "sft" / RECORD), "finished": finished})
    assert [replaced_input(tmp_path, stage) for stage in ("sft", "extend", "convert")] == ["", replaced, replaced]
    assert replaced_input(tmp_path, "publish") == ""


@pytest.mark.parametrize(
    "damage",
    [
        "[]",
        "",
        '{"key": "k',
        '{"figures": []}',
        "\xff",
        '{"seconds": "5"}',
        '{"finished": null}',
        '{"key": 5}',
        '{"reads": {"sft": 5}}',
        '{"outputs": {"a": 5}}',
    ],
)
def test_damaged_record_is_an_error_that_names_it(tmp_path: Path, damage: str) -> None:
    recorded(tmp_path, "checkpoint", "k")
    (tmp_path / "checkpoint" / RECORD).write_text(damage, encoding="latin-1")
    with pytest.raises(KodaError, match=r"checkpoint/stage\.json is not .*\. Without that file, `koda run` builds"):
        up_to_date(tmp_path, "checkpoint", "k", ())
