"""`koda eval` and `koda convert`: what is refused before a model is opened."""

from pathlib import Path

import pytest

from flows.cli.main import main


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a model that cannot be opened and items of one task of the standard suite."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "items").mkdir()
    (tmp_path / "items/piqa.jsonl").write_text('{"goal": "g", "sol1": "a", "sol2": "b", "label": 0}\n')
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "piqa,boolq", "--data", "items"], "--tasks boolq: items has no boolq.jsonl."),
        (["--tasks", "piqa", "--data", "nowhere"], "--tasks piqa: nowhere has no piqa.jsonl."),
        (["--suite", "homemade", "--data", "items"], "items is no run: "),
        (["--suite", "homemade", "--data", "nowhere"], "nowhere is no run: "),
        (["--suite", "homemade"], "model belongs to no run: "),
    ],
)
def test_items_that_are_not_there_are_one_error(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["eval", "model", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"koda: {message}") and error.count("\n") == 1
