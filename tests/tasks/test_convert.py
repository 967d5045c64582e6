import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flax import nnx

from flows.cli.main import main
from model import weights
from model.data import tokenizer as tokenizers
from model.data.shards import ShardWriter
from model.errors import KodaError
from model.export import gguf_file
from model.export.about import About as Statement
from model.export.formats import FORMATS
from model.figures import ParityFigures, PretrainFigures
from model.llama import Llama
from tasks.about import About
from tasks.convert import Convert, convert, export, statement, verdict
from tasks.runs.record import Built, read_built
from tests.conftest import SHAPE
from tests.model.data.test_language import GERMAN
from tests.records import FIGURES, SOURCE, write_record, write_run


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


def test_without_formats_nothing_is_read_or_computed(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    no_inputs = dict.fromkeys(("weights", "tokenizer", "heldout", "trained", "log"), missing)
    assert export(tmp_path, Convert(formats=()), text=None, about={}, **no_inputs) == {}
    assert [path.name for path in tmp_path.iterdir()] == ["parity.json"]


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


@pytest.fixture(scope="module")
def saved_weights(tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path, prose: str) -> Path:
    """A random model, and token shards beside it, `text`."""
    folder = tmp_path_factory.mktemp("saved")
    weights.save(folder / "weights", Llama(replace(SHAPE, vocab_size=512), rngs=nnx.Rngs(0)))
    writer = ShardWriter(folder / "text", 512, 10_000)
    writer.add(tokenizers.load(str(tokenizer_file)).plain(prose[:20_000]))
    writer.close()
    return folder / "weights"


@pytest.fixture
def german_run(tmp_path: Path, tokenizer_file: Path) -> Path:
    """The folder of a run whose held-out text is German."""
    write_run(tmp_path / "tiny")
    shutil.copy(tokenizer_file, tmp_path / "tiny/tokenize/tokenizer.json")
    writer = ShardWriter(tmp_path / "tiny/tokenize/heldout", 512, 10_000)
    writer.add(tokenizers.load(str(tokenizer_file)).plain(GERMAN * 20))
    writer.close()
    return tmp_path / "tiny"


def stated(run: Path, about: About) -> Statement:
    inputs: Any = (read_built(run, "sft"), read_built(run, "tokenize"))
    return statement(about, *inputs)


def test_exports_state_the_languages_that_are_set_or_those_of_the_held_out_text(german_run: Path) -> None:
    assert stated(german_run, About()).languages == ("de",)
    assert stated(german_run, About(language=("nds",))).languages == ("nds",)


def test_exports_of_an_imported_model_state_no_language_of_a_text_that_it_was_not_trained_on(german_run: Path) -> None:
    write_record(german_run, "pretrain", PretrainFigures(parameters=1, imported="SmolLM2-135M"))
    assert stated(german_run, About(base_model="org/SmolLM2-135M")).languages == ()


def test_exports_recommend_the_sampling_that_the_answers_were_measured_with(german_run: Path) -> None:
    """That of a model which learned to answer here; of another, nobody knows."""
    exports = stated(german_run, About(author="Ada"))
    assert (exports.name, exports.author, exports.finetune, exports.temperature) == ("tiny", "Ada", "Chat", 0.0)
    assert exports.datasets == (SOURCE,)
    write_record(german_run, "sft", replace(FIGURES["sft"], steps=0))
    exports = stated(german_run, About())
    assert (exports.finetune, exports.temperature) == ("", None)
    tokens: Any = read_built(german_run, "tokenize")
    assert statement(About(), None, tokens) == exports  # of weights from before the sft stage


@pytest.mark.parametrize("calibrate", [True, False])
def test_setting_decides_whether_exports_are_calibrated(
    saved_weights: Path, tokenizer_file: Path, tmp_path: Path, calibrate: bool
) -> None:
    text = saved_weights.parent / "text"
    export(
        tmp_path,
        Convert(formats=("gguf",), gguf=("Q6_K",), calibrate=calibrate),
        weights=saved_weights,
        tokenizer=tokenizer_file,
        heldout=text,
        text=text,
        trained=saved_weights,
        log=tmp_path / "log",
        about={"name": "m", "datasets": []},
    )
    (file,) = (tmp_path / "gguf").glob("*.gguf")
    assert (gguf_file.value(gguf_file.opened(file), gguf_file.IMPORTANCE) is not None) == calibrate
