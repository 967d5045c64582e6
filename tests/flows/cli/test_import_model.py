"""What `koda import` makes of a model's files, and what it refuses; tests/model/export/test_import.py imports."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from flax import nnx
from gguf import GGUFValueType, GGUFWriter

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
JSON = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def begin_with(name: str, ids: list[int]) -> dict[str, Any]:
    """A post-processor that puts these tokens before a text."""
    parts = [{"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    added = {name: {"id": name, "ids": ids, "tokens": [name] * len(ids)}}
    return {"type": "TemplateProcessing", "single": parts, "pair": parts, "special_tokens": added}


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


@pytest.mark.parametrize(("kind", "dtype"), [("F16", "float16"), ("BF16", "bfloat16"), ("F32", ""), ("Q8_0", "")])
def test_gguf_file_of_one_type_is_exported_in_it(folder: Path, kind: str, dtype: str) -> None:
    model = weights.stored(Llama(SHAPE, rngs=nnx.Rngs(0)))
    gguf_file.write(folder / "it.gguf", model, tokenizers.load(str(folder)), kind, About("it"))
    assert settings(original.read(folder / "it.gguf")).get("convert", {}).get("hf_dtype", "") == dtype


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokenizer.ggml.merges", None, "has no tokenizer.ggml.merges"),
        ("tokenizer.ggml.merges", ["abc"], "cannot be read as a tokenizer"),
        ("tokenizer.ggml.model", "llama", "has no tokenizer.ggml.scores"),
        ("tokenizer.ggml.tokens", ["a", "b"], "2 tokens of 2 spellings and 512 types"),
        ("tokenizer.ggml.tokens", ["a"] * 512, "512 tokens of 1 spellings"),
        ("tokenizer.ggml.eos_token_id", 99999, "eos_token_id = 99999 is not a token"),
        ("tokenizer.ggml.bos_token_id", 99999, "bos_token_id = 99999 is not a token"),
        ("llama.attention.head_count", 0, "llama.attention.head_count = 0 is not a positive whole number"),
        ("llama.attention.head_count", 5, "model.num_attention_heads = 5 is not a multiple"),
        ("llama.attention.head_count_kv", [2, 2, 2], r"head_count_kv = \[2, 2, 2\] is not a positive whole number"),
        ("llama.block_count", 2, r"blk\.2\.\S+ has no place"),
        ("llama.block_count", 4, r"blk\.3\.attn_norm\.weight is missing"),
        ("llama.feed_forward_length", 64, r"blk\.0\.ffn_gate\.weight is \(128, 64\), its metadata has \(64, 64\)"),
    ],
)
def test_damaged_gguf_file_is_refused_by_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: Any, message: str
) -> None:
    """By import, which reads no weights, as by whatever reads them."""
    model = weights.stored(Llama(SHAPE, rngs=nnx.Rngs(0)))
    right = GGUFWriter.add_key_value

    def add(self: GGUFWriter, name: str, correct: Any, kind: GGUFValueType) -> None:
        if name != key:
            right(self, name, correct, kind)
        elif value is not None:
            right(self, name, value, GGUFValueType.ARRAY if isinstance(value, list) else kind)

    monkeypatch.setattr(GGUFWriter, "add_key_value", add)
    gguf_file.write(folder / "it.gguf", model, tokenizers.load(str(folder)), "F32", About("it"))
    with pytest.raises(KodaError, match=rf"it\.gguf.*{message}"):
        original.read(folder / "it.gguf")


@pytest.mark.parametrize(
    ("card", "languages", "license_"),
    [
        (b"license: mit\nlanguage: [en, no]", ["en", "no"], "mit"),
        (b"license: [mit]\nlanguage: no", ["no"], "mit"),
        (b"license: mit\n---\nCaf\xe9", [], "mit"),
        (b"license: caf\xe9", [], "other"),
        (b"license: [mit", [], "other"),
    ],
)
def test_card_is_read_as_it_is_meant(folder: Path, card: bytes, languages: list[str], license_: str) -> None:
    """Norwegian is no boolean; text that is not UTF-8 after the metadata does not matter."""
    (folder / "README.md").write_bytes(b"---\n" + card + b"\n---\n")
    about = settings(original.read(folder))["about"]
    assert (about["language"], about["license"]) == (languages, license_)


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
        (
            "tokenizer.json",
            {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}},
            "add_prefix_space",
        ),
        ("tokenizer.json", {"post_processor": {"type": "none"}}, r"tokenizer\.json cannot be read as a tokenizer"),
        (
            "tokenizer.json",
            {"post_processor": {"type": "BertProcessing", "sep": ["a", 65], "cls": ["b", 66]}},
            "post_processor BertProc",
        ),
        *((file, text, rf"{file} is not a JSON object") for file in JSON for text in ("[]", "3", "null")),
        ("tokenizer.json", {"model": "BPE"}, r"tokenizer\.json: model = 'BPE' is not an object"),
        ("tokenizer.json", {"added_tokens": None}, r"tokenizer\.json cannot be read as a tokenizer"),
        ("tokenizer.json", {"pre_tokenizer": {"type": "Sequence"}}, r"tokenizer\.json cannot be read as a tokenizer"),
        ("tokenizer.json", {"decoder": None}, r"tokenizer\.json: the decoder null"),
        ("tokenizer.json", {"decoder": {"type": "BPEDecoder", "suffix": "</w>"}}, "the decoder .*BPEDecoder"),
        ("tokenizer.json", {"post_processor": begin_with("<|endoftext|>", [0, 5])}, "the post_processor .*one token"),
        (
            "tokenizer.json",
            {"post_processor": begin_with("<|endoftext|>", [999])},
            "post_processor = 999 is not a token",
        ),
        ("config.json", {"eos_token_id": 99999}, r"config\.json: eos_token_id = 99999 is not a token"),
        ("config.json", {"eos_token_id": [2, 99999]}, r"config\.json: eos_token_id = 99999 is not a token"),
        ("config.json", {"eos_token_id": "2"}, r"config\.json: eos_token_id = '2' is not a token"),
        ("generation_config.json", {"eos_token_id": 99999}, r"generation_config\.json: eos_token_id = 99999"),
        ("special_tokens_map.json", {"eos_token": "<|im_end|>"}, r"original: eos_token = '<\|im_end\|>' .* not in the"),
        ("special_tokens_map.json", {"eos_token": 5}, "original: eos_token = 5 .* is not in the tokenizer"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"511": {"content": "<|im_end|>"}}},
            r"tokenizer_config\.json: its token 511, '<\|im_end\|>', is not in the tokenizer",
        ),
        ("chat_template.jinja", "caf\udce9", r"chat_template\.jinja is not UTF-8"),
        (
            "chat_template.jinja",
            "{{ 1 // 0 }}",
            "original: the chat template of the tokenizer fails: ZeroDivisionError",
        ),
        ("README.md", "---\nlicense: [mit, apache-2.0]\n---\n", r"README\.md: it names several licences \(mit, apache"),
    ],
)
def test_model_that_koda_cannot_take_is_refused_by_name(
    folder: Path, file: str, content: dict[str, Any] | str | None, message: str
) -> None:
    if content is None:
        (folder / file).unlink()
    elif isinstance(content, str):
        (folder / file).write_text(content, errors="surrogateescape")
    else:
        change(folder / file, **content)
    with pytest.raises(KodaError, match=message) as raised:
        original.read(Path("original"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["continuing_subword_prefix", "end_of_word_suffix"])
def test_affixes_of_a_model_are_refused_by_name(folder: Path, name: str) -> None:
    """`tokenizers` panics at the first, and splits words otherwise with the second."""
    change(folder / "tokenizer.json", model={**read_json(folder / "tokenizer.json")["model"], name: "##"})
    with pytest.raises(KodaError, match=rf"tokenizer\.json: {name} = '##'"):
        original.read(folder)


@pytest.mark.parametrize(
    "template", [{"default": "x"}, [{"nam": "default", "template": "x"}], [{"name": "default", "template": 5}]]
)
def test_chat_template_of_another_form_is_refused(folder: Path, template: Any) -> None:
    (folder / "chat_template.jinja").unlink()
    change(folder / "tokenizer_config.json", chat_template=template)
    with pytest.raises(KodaError, match=r"tokenizer_config\.json: chat_template is neither"):
        original.read(folder)


def test_older_map_names_special_tokens_where_transformers_reads_it(folder: Path) -> None:
    """It is in the hash of what the tokenizer is read from, too."""
    change(folder / "special_tokens_map.json", eos_token="!")
    before = tokenizers.fingerprint(str(folder))
    assert original.read(folder).vocabulary.stops == (tokenizers.load(str(folder)).tokenizer.token_to_id("!"), 0)
    change(folder / "special_tokens_map.json", eos_token="#")
    assert tokenizers.fingerprint(str(folder)) != before
    change(folder / "tokenizer_config.json", added_tokens_decoder={})
    assert original.read(folder).vocabulary.stops == (0,)


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
    with pytest.raises(KodaError, match="names a token that ends a text"):
        tokenizers.load(str(tmp_path))


def test_template_that_cannot_be_trained_gives_way_to_that_of_koda(folder: Path) -> None:
    """As the refusal advises."""
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    with pytest.raises(KodaError, match=r"With tokenize\.template=koda"):
        original.read(folder)
    assert original.read(folder, "koda").vocabulary.special.template == ""
