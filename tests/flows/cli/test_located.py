"""What the MODEL of a command line means."""

from pathlib import Path

import pytest

from flows.cli.located import locate
from model.errors import KodaError
from model.files import read_json, write_json
from tasks.runs.record import RECORD
from tests.records import FIGURES, write_record


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with weights up to sft, and two checkpoints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KODA_RUNS", str(tmp_path / "runs"))
    folder = tmp_path / "runs/mine"
    for place in ("pretrain/checkpoints/20", "pretrain/checkpoints/100", "checkpoint/weights", "sft/weights"):
        write_json(folder / place / "COMMIT.json", {})
    for stage in ("checkpoint", "sft"):
        write_record(folder, stage, FIGURES[stage])
    for file in ("run.toml", "tokenize/tokenizer.json"):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text("")
    return folder


@pytest.mark.parametrize(
    ("model", "place"),
    [
        ("mine", "sft/weights"),
        ("mine/checkpoint", "checkpoint/weights"),
        ("mine/pretrain", "pretrain/checkpoints/100"),
        ("runs/mine/checkpoint/weights", "checkpoint/weights"),
    ],
)
def test_run_means_its_last_weights_and_a_stage_its_own(run: Path, model: str, place: str) -> None:
    located = locate(model)
    assert located.path.resolve() == (run / place).resolve() and located.tokens is not None
    assert located.tokens.resolve() == (run / "tokenize").resolve()


@pytest.mark.parametrize("model", ["other", "mine/convert", "mine/extend", "/nowhere/model.gguf", ""])
def test_what_is_no_model_is_refused(run: Path, model: str) -> None:
    with pytest.raises(KodaError, match=r"is not a model|weights are in|has no weights yet"):
        locate(model)


def test_run_whose_last_weights_are_stale_is_refused_and_a_stage_of_it_is_not(run: Path) -> None:
    record = read_json(run / "sft" / RECORD)
    write_json(run / "sft" / RECORD, {**record, "reads": {"checkpoint": "of an earlier training"}})
    with pytest.raises(KodaError, match=r"sft of runs/mine was built from an earlier checkpoint"):
        locate("mine")
    assert locate("mine/sft").path.samefile(run / "sft/weights")
