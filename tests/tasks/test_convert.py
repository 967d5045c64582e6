import sys
from pathlib import Path

import pytest

from flows.cli.main import main
from model.errors import KodaError
from model.export.formats import FORMATS
from model.figures import ParityFigures
from tasks.about import About
from tasks.convert import Convert, convert, verdict
from tasks.runs.record import Built


@pytest.mark.parametrize("name", ["hf", "gguf"])
def test_missing_runtime_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """In one line, with what installs it; the model is not even read."""
    monkeypatch.setitem(sys.modules, FORMATS[name].package, None)
    missing = Built("extend", tmp_path / "extend", "", None)
    with pytest.raises(KodaError) as refused:
        convert.body(tmp_path / "convert", Convert(), About(), missing, missing, missing)
    message = str(refused.value)
    for part in (FORMATS[name].runtime, FORMATS[name].package, f"the {name} export", "--group verify` installs it."):
        assert part in message
    assert "\n" not in message and not any(tmp_path.iterdir())


def test_chat_names_a_missing_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    monkeypatch.setenv("KODA_RUNS", str(tmp_path))
    for file in ("run.toml", "convert/gguf/tiny-F16.gguf", "extend/weights/COMMIT.json"):
        (tmp_path / "tiny" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tiny" / file).write_text('{"config": {"max_position_embeddings": 64}}')
    with pytest.raises(KodaError) as refused:
        FORMATS["gguf"].check_runtime()
    assert main(["chat", "--runtime", "gguf", "--prompt", "x"]) == 1
    assert capsys.readouterr().err == f"koda: {refused.value}\n"


def test_export_that_fails_is_named_and_ends_the_stage() -> None:
    good, bad = ParityFigures(failed=[]), ParityFigures(failed=["it splits"], first_difference="First to differ: x.")
    verdict({"hf": good})
    with pytest.raises(KodaError, match=r"a\.gguf: it splits\. First to differ: x\.") as refused:
        verdict({"hf": good, "gguf/a.gguf": bad})
    assert "hf:" not in str(refused.value)


def test_formats_are_written_in_the_order_they_need_each_other() -> None:
    """MLX is made from the Hugging Face folder, whatever order they are asked for in, or if that one is asked for."""
    assert list(Convert(formats=("mlx",)).variants()) == ["hf", "mlx"]
    assert list(Convert(formats=("mlx", "gguf", "hf")).variants()) == ["hf", "gguf", "mlx"]
    assert Convert(formats=("mlx",), hf_dtype="float16", mlx=("4bit",)).variants() == {
        "hf": ("float16",),
        "mlx": ("4bit",),
    }
    assert Convert(gguf=()).variants().keys() == {"hf", "mlx"} and Convert(formats=()).variants() == {}
