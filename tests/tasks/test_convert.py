import sys
from pathlib import Path

import pytest

from flows.cli import main
from model.errors import KodaError
from tasks.about import About
from tasks.convert import Convert, convert
from tasks.run import Built


def test_a_runtime_that_is_not_installed_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what installs it, and with nothing about weights that nobody has looked at."""
    for package in ("torch", "xllamacpp"):
        monkeypatch.setitem(sys.modules, package, None)
    nothing = Built("extend", tmp_path / "extend", "")
    with pytest.raises(KodaError) as refused:
        convert.body(tmp_path / "convert", Convert(), About(), nothing, nothing, nothing)
    assert str(refused.value).startswith("what opens the exports is not installed: torch (hf), xllamacpp (gguf). In ")
    assert "--group verify` installs it." in str(refused.value) and "\n" not in str(refused.value)
    assert not any(tmp_path.iterdir())


def test_nor_can_it_be_talked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    monkeypatch.setenv("KODA_RUNS", str(tmp_path))
    (tmp_path / "tiny/convert/gguf").mkdir(parents=True)
    for file in ("run.toml", "convert/gguf/tiny-F16.gguf"):
        (tmp_path / "tiny" / file).touch()
    assert main(["chat", "--runtime", "gguf", "--prompt", "x"]) == 1
    assert capsys.readouterr().err.startswith("koda: what opens the exports is not installed: xllamacpp (gguf). In ")
