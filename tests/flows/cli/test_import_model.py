"""What `koda import` makes of a model's files, and what it refuses; tests/model/export/test_import.py imports."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from flax import nnx

from flows.cli.import_model import settings
from flows.cli.main import main
from flows.config import load
from model import weights
from model.config import LlamaConfig
from model.data import tokenizer as tokenizers
from model.errors import KodaError
from model.export import gguf_file, original
from model.export.about import About
from model.export.formats import hf
from model.files import read_json, sha256, write_json
from model.llama import Llama
from tasks.runs.paths import folder_of
from tests.pipeline import KODA

SHAPE = LlamaConfig(
    vocab_size=512,
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=128,
    max_position_embeddings=48,
    rope_theta=500000.0,
    rms_norm_eps=1e-6,
)
SPM = Path(__file__).parents[2] / "data/tiny-spm"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer_file: Path) -> Path:
    """A model's folder, beside the folder of all runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KODA_RUNS", str(tmp_path / "runs"))
    random_model(tmp_path / "original", tokenizer_file)
    return tmp_path / "original"


def random_model(folder: Path, tokenizer_file: Path) -> None:
    model = weights.stored(Llama(SHAPE, rngs=nnx.Rngs(0)))
    hf.write(folder, model, tokenizers.load(str(tokenizer_file)), "bfloat16")


def change(file: Path, **fields: Any) -> None:
    write_json(file, {**read_json(file), **fields})


def test_settings_have_the_shape_the_weights_the_tokenizer_and_the_card(folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: mit\nlanguage: [de, fr]\n---\n# It\n")
    change(folder / "config.json", _name_or_path="someone/it")
    hashes = f"{sha256(folder / 'config.json')} {sha256(folder / 'model.safetensors')}"
    found = settings(original.read(Path("original")))
    assert found["model"]["weights"] == str(folder)  # absolute, for a run that is started elsewhere
    assert found["model"]["weights_sha256"] == hashes and found["model"]["head_dim"] == 16
    assert found["model"]["rope_theta"] == 500000.0 and found["tokenize"] == {"tokenizer": str(folder)}
    assert found["about"] == {"license": "mit", "language": ["de", "fr"], "base_model": "someone/it"}
    assert found["convert"] == {"hf_dtype": "bfloat16"} and "extend" not in found
    config = load("tiny", found)
    assert config.model.llama(512) == SHAPE and config.about.license == "mit"


def test_what_a_model_does_not_state_is_not_made_up(folder: Path) -> None:
    assert settings(original.read(folder))["about"] == {"license": "other", "language": [], "base_model": ""}


def test_gguf_file_is_imported_with_its_own_vocabulary(folder: Path) -> None:
    vocabulary = tokenizers.load(str(SPM)).with_template("{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}")
    model = weights.stored(Llama(SHAPE, rngs=nnx.Rngs(0)))
    gguf_file.write(folder / "it.gguf", model, vocabulary, "Q8_0", About("it", license="mit"))
    with pytest.raises(KodaError, match=r"chat template .* With tokenize\.template=koda"):
        original.read(folder / "it.gguf")  # it shows no answer
    gguf_file.write(folder / "it.gguf", model, vocabulary.with_template(""), "Q8_0", About("it", license="mit"))
    found = settings(original.read(folder / "it.gguf"))
    assert found["tokenize"]["tokenizer"] == found["model"]["weights"] == str(folder / "it.gguf")
    assert found["model"]["weights_sha256"] == sha256(folder / "it.gguf") and found["about"]["license"] == "mit"


def test_weights_decide_the_hash_and_where_they_are_does_not(folder: Path) -> None:
    """A stage that was built from them is stale where they changed, and up to date where they were moved."""
    before = settings(original.read(folder))["model"]
    moved = folder.rename(folder.with_name("moved"))
    after = settings(original.read(moved))["model"]
    assert after["weights"] != before["weights"] and after["weights_sha256"] == before["weights_sha256"]
    hf.write(moved, weights.stored(Llama(SHAPE, rngs=nnx.Rngs(1))), tokenizers.load(str(moved)), "bfloat16")
    assert settings(original.read(moved))["model"]["weights_sha256"] != before["weights_sha256"]


def test_scaled_positions_are_not_scaled_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder / "config.json", rope_scaling={"type": "linear", "factor": 4.0}, rope_parameters=None)
    assert settings(original.read(folder))["extend"] == {"factor": 1}
    assert main(["import", str(folder), "--name", "it", "--set", "extend.factor=2"]) == 1
    assert "extend.factor can only be 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, r"original .*Hugging Face model.*no config\.json"),
        ("model.safetensors", None, r"model\.safetensors is not there"),
        ("tokenizer.json", None, r"original.*no tokenizer there"),
        ("config.json", {"model_type": "gpt2"}, r"config\.json: the model is gpt2"),
        ("config.json", {"intermediate_size": 256}, r"gate_proj\.weight is \(128, 64\), config\.json has \(256, 64\)"),
        ("config.json", "{", r"config\.json is not JSON"),
        ("tokenizer.json", "[", r"tokenizer\.json is not JSON"),
        ("tokenizer.json", {"normalizer": {"type": "NFC"}}, r"tokenizer\.json: the normalizer .*NFC"),
        ("tokenizer.json", {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "add_prefix_space"),
        ("tokenizer.json", {"post_processor": {"type": "none"}}, r"tokenizer\.json cannot be read as a tokenizer"),
        (
            "tokenizer.json",
            {"post_processor": {"type": "BertProcessing", "sep": ["a", 65], "cls": ["b", 66]}},
            "post_processor BertProc",
        ),
    ],
)
def test_model_that_koda_cannot_take_is_refused_by_name(
    folder: Path, file: str, content: dict[str, Any] | str | None, message: str
) -> None:
    if content is None:
        (folder / file).unlink()
    elif isinstance(content, str):
        (folder / file).write_text(content)
    else:
        change(folder / file, **content)
    with pytest.raises(KodaError, match=message):
        original.read(Path("original"))


def test_refusal_is_one_line_and_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    """Prefect is not even imported: it writes to the home folder."""
    change(folder / "config.json", model_type="mistral", architectures=["MistralForCausalLM"])
    home = tmp_path / "home"
    home.mkdir()
    ended = subprocess.run(
        [KODA, "import", "original", "--name", "it"],
        cwd=tmp_path,
        env={"HOME": str(home), "PATH": "/usr/bin:/bin", "KODA_RUNS": str(tmp_path / "runs")},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1 and ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 1 and ended.stderr.startswith("koda: original/config.json: the model is")
    assert not (home / ".prefect").exists() and not (tmp_path / "runs").exists()


def test_run_that_began_with_a_training_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its checkpoints would be of another model; and by the command, before anything is written."""
    job = folder_of("trained") / "pretrain/job.json"
    job.parent.mkdir(parents=True)
    job.write_text("{}")
    assert main(["import", str(folder), "--name", "trained"]) == 1
    error = capsys.readouterr().err
    assert "runs/trained began with a training of its own" in error and "another --name" in error
    assert [path.name for path in folder_of("trained").rglob("*") if path.is_file()] == ["job.json"]


def test_truncation_and_padding_of_a_tokenizer_are_switched_off(folder: Path, prose: str) -> None:
    """And the rest of its files decides as in transformers: tokenizer.json before vocab.json and merges.txt."""
    before = tokenizers.load(str(folder)).plain(prose[:2_000])
    raw = json.loads((folder / "tokenizer.json").read_text())
    (folder / "vocab.json").write_text(json.dumps({"<|endoftext|>": 0, "a": 1}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    raw["truncation"] = {"direction": "Right", "max_length": 64, "strategy": "LongestFirst", "stride": 0}
    raw["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }
    write_json(folder / "tokenizer.json", raw)
    loaded = tokenizers.load(str(folder))
    assert loaded.plain(prose[:2_000]) == before and len(before) > 64 and len(loaded.plain("a")) == 1
    loaded.save(folder.parent)  # as the stages read it, and as it is exported
    assert json.loads((folder.parent / "tokenizer.json").read_text())["truncation"] is None
    raw["model"]["dropout"] = 0.5
    write_json(folder / "tokenizer.json", raw)
    with pytest.raises(KodaError, match=r"dropout = 0\.5"):
        tokenizers.load(str(folder))


def test_pair_of_files_without_an_end_of_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(KodaError, match=r"has no <\|endoftext\|> entry"):
        tokenizers.load(str(tmp_path))


def test_template_that_cannot_be_trained_gives_way_to_that_of_koda(folder: Path) -> None:
    """As the refusal advises."""
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    with pytest.raises(KodaError, match=r"With tokenize\.template=koda"):
        original.read(folder)
    assert original.read(folder, "koda").vocabulary.special.template == ""
