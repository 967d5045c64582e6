"""`koda convert`: somebody's model in all formats, by one command, without a run."""

from dataclasses import replace
from pathlib import Path

import jax
import pytest
from flax import nnx

from flows.cli.convert import TYPE, settings
from flows.cli.main import main
from model import weights
from model.data import tokenizer as tokenizers
from model.errors import KodaError
from model.export import gguf_file
from model.export.formats import hf
from model.files import read_json, write_json
from model.llama import Llama
from tests.conftest import SHAPE

SPM = Path(__file__).parents[2] / "data/tiny-spm"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Llama with a SentencePiece vocabulary, heads of a size of their own, biases and scaled positions."""
    monkeypatch.chdir(tmp_path)
    shape = replace(
        SHAPE,
        vocab_size=512,
        max_position_embeddings=128,
        head_dim=32,
        attention_bias=True,
        mlp_bias=True,
        rope_scaling="llama3",
        rope_factor=8.0,
        rope_original_context=8192,
    )
    model, draw = Llama(shape, rngs=nnx.Rngs(0)), nnx.Rngs(1)
    nnx.update(model, jax.tree.map(lambda p: p + 0.2 * jax.random.normal(draw(), p.shape), nnx.state(model, nnx.Param)))
    hf.write(tmp_path / "theirs", weights.stored(model), tokenizers.load(str(SPM)), "float32")
    return tmp_path / "theirs"


def test_model_of_others_is_exported_and_compared_in_each_runtime(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "README.md").write_text("---\nlicense: mit\nlanguage: [de]\n---\n")
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", config | {"_name_or_path": "org/theirs"})
    assert main(["convert", "theirs", "--quant", "float32,F32,fp16"]) == 0
    printed = capsys.readouterr().out
    out = folder.parent / "theirs-exports"
    assert sorted(path.name for path in out.iterdir()) == ["gguf", "hf", "mlx", "parity.json"]
    parity = read_json(out / "parity.json")
    assert parity.keys() == {"hf", "gguf/theirs-165K-F32.gguf", "mlx/fp16"} and all(path in printed for path in parity)
    assert parity["gguf/theirs-165K-F32.gguf"]["kl_divergence"] < 1e-6 and not list(folder.parent.glob(".*"))
    stated = gguf_file.opened(out / "gguf/theirs-165K-F32.gguf")
    of = [gguf_file.value(stated, f"general.{key}") for key in ("license", "languages", "base_model.0.repo_url")]
    assert of == ["mit", ["de"], "https://huggingface.co/org/theirs"]
    assert (out / "hf/tokenizer.json").read_bytes() == (SPM / "tokenizer.json").read_bytes()
    assert main(["convert", "theirs"]) == 1 and "theirs-exports is there already" in capsys.readouterr().err
    # and back from the file, to the same numbers
    assert main(["convert", str(out / "gguf/theirs-165K-F32.gguf"), "--to", "hf", "--out", "back"]) == 0
    first, second = (hf.read(path) for path in (folder, Path("back/hf")))
    jax.tree.map(lambda a, b: (a == b).all() or pytest.fail("a number differs"), first.params, second.params)
    assert first.config == second.config


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("SmolLM2-135M-Instruct.Q4_1", "SmolLM2-135M-Instruct"),
        ("Llama-3.2-1B-Q4_K_M", "Llama-3.2-1B"),
        ("mine-bf16", "mine"),
        ("tiny.IQ3_XXS", "tiny"),
        ("Qwen2-7B", "Qwen2-7B"),
        ("plain", "plain"),
    ],
)
def test_number_type_of_a_file_is_no_part_of_the_models_name(stem: str, name: str) -> None:
    assert TYPE.sub("", stem) == name


@pytest.mark.parametrize(
    ("formats", "types", "message"),
    [
        (["hf", "onnx"], [], "--to onnx: the formats are hf, gguf, mlx"),
        (["hf", "mlx"], ["Q8_0"], "--quant Q8_0: hf, mlx have .*bfloat16.*4bit"),
        (["gguf"], ["Q9"], "--quant Q9: gguf have auto, F32"),
    ],
)
def test_format_or_type_that_is_not_known_is_refused(formats: list[str], types: list[str], message: str) -> None:
    with pytest.raises(KodaError, match=message):
        settings(formats, types)


def test_width_that_cannot_be_quantised_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    narrow = replace(
        SHAPE, vocab_size=512, hidden_size=80, num_attention_heads=5, num_key_value_heads=5, intermediate_size=96
    )
    model = weights.stored(Llama(narrow, rngs=nnx.Rngs(0)))
    hf.write(folder.parent / "narrow", model, tokenizers.load(str(SPM)), "float32")
    assert main(["convert", "narrow", "--quant", "Q8_0", "--to", "gguf"]) == 1
    assert "hidden_size = 80 is not a multiple of 32, which gguf Q8_0 needs" in capsys.readouterr().err


def test_model_of_others_is_calibrated_on_the_text_that_is_named(
    folder: Path, prose: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """And on none without it; a text that cannot be read is refused before anything is written."""
    Path("text.txt").write_text(prose[:20_000])
    Path("text.bin").write_bytes(b"\xff\xfe")
    convert = ["convert", "theirs", "--to", "gguf", "--quant", "Q4_K_M"]
    assert main([*convert, "--calibrate", "text.bin"]) == 1
    assert "--calibrate text.bin: cannot be read as UTF-8 text" in capsys.readouterr().err
    entries = []
    for out, more in (("plain", []), ("calibrated", ["--calibrate", "text.txt"])):
        assert main([*convert, "--out", out, *more]) == 0
        (file,) = Path(out, "gguf").glob("*.gguf")
        entries.append(gguf_file.value(gguf_file.opened(file), gguf_file.IMPORTANCE))
    assert entries == [None, 15]  # seven matrices in two layers, and the head
