"""Imported models: read, exported unchanged, and refused by name where Koda computes something else."""

import json
import shutil
from inspect import signature
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from model import arrays, weights
from model.data import tokenizer as tokenizers
from model.data.shards import Shards
from model.errors import KodaError
from model.export import adopt, gguf_file, tensors
from model.export.about import About
from model.export.formats import hf, mlx
from model.export.names import to_hf
from model.figures import CheckpointFigures
from model.files import read_json, write_json
from model.stored import Stored
from tests.pipeline import KODA, run

SHAPE = {
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 96,
    "rms_norm_eps": 1e-6,
    "rope_theta": 12345.0,
}


def save_random(folder: Path, dtype: str = "float32", shard: str = "5GB", **changes: Any) -> LlamaForCausalLM:
    """A random model as transformers itself saves it."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**SHAPE, **changes})).to(getattr(torch, dtype)).eval()
    model.save_pretrained(folder, max_shard_size=shard)
    return model


def all_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in tensors.files(folder) for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard", ["5GB", "100KB"])
def test_model_is_exported_unchanged(tmp_path: Path, tokenizer_file: Path, dtype: str, tied: bool, shard: str) -> None:
    """Through Koda's own folder of weights: every tensor to the bit, in its own type, and the same config.json."""
    save_random(tmp_path / "original", dtype, shard, tie_word_embeddings=tied)
    assert (len(list((tmp_path / "original").glob("*.safetensors"))) > 1) == (shard == "100KB")
    figures = adopt.adopt(str(tmp_path / "original"), str(tokenizer_file), str(tmp_path / "weights"))
    assert figures.dtype == dtype
    back = weights.read(tmp_path / "weights")
    hf.write(
        tmp_path / "exported",
        back,
        tokenizers.load(str(tokenizer_file)),
        "auto",
        shard=100_000 if shard == "100KB" else tensors.SHARD,
    )
    before, after = all_tensors(tmp_path / "original"), all_tensors(tmp_path / "exported")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    config = read_json(tmp_path / "exported/config.json")
    original = {**SHAPE, "tie_word_embeddings": tied, "dtype": dtype}
    assert {name: config[name] for name in original} == original
    reopened = LlamaForCausalLM.from_pretrained(tmp_path / "exported")
    assert reopened.config.rope_parameters["rope_theta"] == 12345.0


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 500.0},
        {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0},
        {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 24},
        {
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 8.0,
            "original_max_position_embeddings": 24,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
    ],
)
@pytest.mark.parametrize("kind", [{}, {"attention_bias": True, "mlp_bias": True, "head_dim": 32}])
def test_logits_equal_those_of_transformers(tmp_path: Path, rope: dict[str, Any], kind: dict[str, Any]) -> None:
    """With each way of scaling positions; also with biases and with heads of a size of their own."""
    model = save_random(tmp_path, rope_parameters=rope, initializer_range=0.1, **kind)
    with torch.no_grad():  # transformers begins with biases of zero
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.5)
    model.save_pretrained(tmp_path)
    ids = np.arange(3, 93)[None]
    with torch.no_grad():
        expected = model(torch.tensor(ids)).logits.numpy()
    read = hf.read(tmp_path)
    np.testing.assert_allclose(np.asarray(weights.network(read)(ids)), expected, atol=1e-4)
    hf.tensors.write(tmp_path, list(to_hf(read.params)), "auto")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in all_tensors(tmp_path).items())


def change(folder: Path, **fields: Any) -> None:
    write_json(folder / "config.json", {**read_json(folder / "config.json"), **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention_bias": True}, r"q_proj\.bias is missing"),
        ({"mlp_bias": True}, r"gate_proj\.bias is missing"),
        ({"hidden_act": "gelu"}, r"hidden_act = 'gelu'.*'silu'"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "'llama3' has no high_freq_factor"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope scaling.*'dynamic'"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": 16}}, "beta_fast = 16"),
        ({"head_dim": 32}, r"q_proj\.weight is \(64, 64\), config.json has \(128, 64\)"),
        ({"model_type": "mistral"}, "mistral.*Koda reads LlamaForCausalLM"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"num_hidden_layers": 4}, r"model\.layers\.3\.input_layernorm\.weight is missing"),
        ({"intermediate_size": 64}, r"gate_proj\.weight.* \(128, 64\).* \(64, 64\)"),
        ({"num_hidden_layers": 2}, r"model\.layers\.2\.\S+ has no place"),
        ({"num_hidden_layers": "3"}, r"config\.json: num_hidden_layers = '3' is not a positive whole number"),
        ({"hidden_size": 64.0}, r"hidden_size = 64\.0 is not a positive whole number"),
        ({"max_position_embeddings": None}, "max_position_embeddings = None is not a positive whole number"),
        ({"num_key_value_heads": 0}, "num_key_value_heads = 0 is not a positive whole number"),
        ({"num_key_value_heads": 3}, r"config\.json: model\.num_attention_heads = 4 is not a multiple .*; 3 or 6"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps = '1e-6' is not a positive number"),
        ({"tie_word_embeddings": "true"}, "tie_word_embeddings = 'true' is not true or false"),
        ({"architectures": "LlamaForCausalLM"}, "architectures = 'LlamaForCausalLM' is not a list"),
        ({"rope_theta": 0}, "rope_theta = 0 is not a positive number"),
        ({"rope_theta": 777.0}, r"config\.json: rope_theta is 777\.0 and 12345\.0"),
        ({"rope_scaling": "linear"}, "rope_scaling = 'linear' is not an object"),
        ({"rope_scaling": {"type": ["linear"]}}, r"rope scaling of kind \['linear'\] is not known"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "'linear': factor = 0 is not a positive number"),
        ({"rope_scaling": {"type": "linear", "factor": "4"}}, "'linear': factor = '4' is not a positive number"),
    ],
)
def test_what_koda_cannot_represent_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    save_random(tmp_path)
    change(tmp_path, **fields)
    with pytest.raises(KodaError, match=message) as raised:
        hf.read(tmp_path)
    assert "\n" not in str(raised.value)


def test_architectures_may_be_null(tmp_path: Path) -> None:
    """As transformers writes it for a configuration without a model."""
    save_random(tmp_path)
    change(tmp_path, architectures=None)
    assert hf.read(tmp_path).config.hidden_size == 64


@pytest.mark.parametrize(
    ("index", "message"),
    [("[]", "is not a JSON object"), ('{"weight_map": {"a": 5}}', "a = 5 is not text"), ("{}", "has no weight_map")],
)
def test_index_of_another_form_is_refused(tmp_path: Path, index: str, message: str) -> None:
    """Beside a folder where the file should be, which is not read either."""
    (tmp_path / "model.safetensors").mkdir()
    assert tensors.visible(tmp_path) == []
    (tmp_path / tensors.INDEX).write_text(index)
    with pytest.raises(KodaError, match=rf"model\.safetensors\.index\.json.*{message}"):
        tensors.files(tmp_path)


def test_biases_are_refused_though_config_json_does_not_mention_them(tmp_path: Path) -> None:
    save_random(tmp_path, attention_bias=True)
    change(tmp_path, attention_bias=False)
    with pytest.raises(KodaError, match=r"self_attn\.\w_proj\.bias has no place"):
        hf.read(tmp_path)


def test_head_that_differs_from_a_tied_embedding_is_refused(tmp_path: Path) -> None:
    """An equal copy is not: some old exports have one."""
    save_random(tmp_path, tie_word_embeddings=True)
    named = load_file(tmp_path / "model.safetensors")
    named["lm_head.weight"] = named["model.embed_tokens.weight"].clone()
    save_file(named, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "head" not in hf.read(tmp_path).params
    named["lm_head.weight"][3, 4] += 1e-3
    save_file(named, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(KodaError, match=r"lm_head\.weight differs .*tie_word_embeddings"):
        hf.read(tmp_path)


def test_index_that_is_older_than_the_file_beside_it_is_not_read(tmp_path: Path) -> None:
    save_random(tmp_path, shard="100KB")  # an older model, in several files
    assert len(tensors.files(tmp_path)) > 1
    named = {name: torch.full_like(tensor, 3.0) for name, tensor in all_tensors(tmp_path).items()}
    save_file(named, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert tensors.files(tmp_path) == [tmp_path / "model.safetensors"]
    assert (hf.read(tmp_path).params["embedding"] == 3.0).all()


def test_pickled_and_corrupt_files_are_not_opened(tmp_path: Path, tokenizer_file: Path) -> None:
    save_random(tmp_path)
    intact = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(intact[:-100])
    with pytest.raises(KodaError, match=r"model\.safetensors cannot be read as safetensors"):
        hf.read(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(KodaError, match="pickled and not opened"):
        hf.read(tmp_path)


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, tokenizer_file: Path) -> None:
    save_random(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(KodaError, match=r"norm/scale .* not finite"):
        adopt.adopt(str(tmp_path), str(tokenizer_file), str(tmp_path / "weights"))


def test_adopted_model_is_promoted_without_a_second_copy(
    tmp_path: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not one that is corrupt, or has numbers that are not finite."""
    save_random(tmp_path / "original", "bfloat16")
    adopted = tmp_path / "adopted"
    figures = adopt.adopt(str(tmp_path / "original"), str(tokenizer_file), str(adopted))
    promoted = adopt.promote(str(adopted), str(tmp_path / "good"))
    assert promoted == CheckpointFigures(parameters=figures.parameters)
    files = [path.relative_to(adopted) for path in adopted.rglob("*") if path.is_file()]
    assert files and all((tmp_path / "good" / path).samefile(adopted / path) for path in files)
    with monkeypatch.context() as corrupt:
        corrupt.setattr(arrays, "read_parts", lambda *_: [("norm/scale", np.array([1, np.nan], "bfloat16"))])
        with pytest.raises(KodaError, match=r"norm/scale .* not finite"):
            adopt.promote(str(adopted), str(tmp_path / "bad"))
    commit = (adopted / "COMMIT.json").read_text()
    (adopted / "COMMIT.json").unlink()
    (adopted / "COMMIT.json").write_text(commit.replace('"crc32": ', '"crc32": 1'))
    with pytest.raises(arrays.Corrupt, match="checksum"):
        adopt.promote(str(adopted), str(tmp_path / "bad"))
    assert not (tmp_path / "bad").exists()


def test_more_tokens_than_rows_are_refused(tmp_path: Path, tokenizer_file: Path) -> None:
    save_random(tmp_path, vocab_size=500)
    with pytest.raises(KodaError, match=r"512 .* 500 rows"):
        adopt.adopt(str(tmp_path), str(tokenizer_file), str(tmp_path / "weights"))


def test_llama_takes_all_that_the_tokenizer_returns(tmp_path: Path, tokenizer_file: Path) -> None:
    """transformers 4 returns `token_type_ids` where the configuration allows it, and `generate` refuses them."""
    hf.write_tokenizer(tmp_path, tokenizers.load(str(tokenizer_file)), 96)
    names = read_json(tmp_path / "tokenizer_config.json")["model_input_names"]
    assert names == [*AutoTokenizer.from_pretrained(tmp_path)("a")]
    assert signature(LlamaForCausalLM.forward).parameters.keys() >= {*names}


def relative_error(expected: Stored, read: Stored) -> float:
    """The largest of any tensor."""
    pairs = zip(jax.tree.leaves(expected.params), jax.tree.leaves(read.params), strict=True)
    return max(float(np.linalg.norm(np.float32(b) - a) / (np.linalg.norm(a) or 1)) for a, b in pairs)


# Half a step, relative to the number (11 and 8 bits of mantissa) or to the largest of 32 numbers or a group of 64.
@pytest.mark.parametrize(
    ("kind", "most"),
    [("F32", 0), ("F16", 2**-11), ("BF16", 2**-8), ("Q8_0", 0.01), ("fp16", 2**-11), ("8bit", 0.01), ("4bit", 0.2)],
)
def test_exports_read_back_equal_the_model_but_for_rounding(
    saved_model: Path, tokenizer_file: Path, tmp_path: Path, kind: str, most: float
) -> None:
    model = weights.read(saved_model / "weights")
    if kind in gguf_file.TYPES:
        about = About("m", "me", "mit", "https://x", ("a", "b"))
        gguf_file.write(tmp_path / "m.gguf", model, tokenizers.load(str(tokenizer_file)), kind, about)
        back = gguf_file.read(tmp_path / "m.gguf")
        reader = gguf_file.opened(tmp_path / "m.gguf")
        keys = ("name", "author", "license", "url", "dataset.1.name")
        assert [gguf_file.value(reader, f"general.{key}") for key in keys] == ["M", "me", "mit", "https://x", "b"]
    else:
        hf.write(tmp_path / "hf", model, tokenizers.load(str(tokenizer_file)), "auto")
        mlx.write(tmp_path / "mlx", tmp_path / "hf", kind)
        back = mlx.read(tmp_path / "mlx")
        for name in mlx.TOKENIZER_FILES:
            assert (tmp_path / "mlx" / name).read_bytes() == (tmp_path / "hf" / name).read_bytes()
    assert back.config == model.config
    assert (most / 100 if most else 0) <= relative_error(model, back) <= most


@pytest.mark.parametrize(
    ("settings", "message"), [({"quant_predicate": "mixed_4_6"}, ""), ({"q_mode": "mxfp4"}, "mxfp4")]
)
def test_mlx_folders_of_others_are_read_layer_by_layer_or_refused_by_mode(
    saved_model: Path, tokenizer_file: Path, tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    import mlx_lm

    model = weights.read(saved_model / "weights")
    hf.write(tmp_path / "hf", model, tokenizers.load(str(tokenizer_file)), "auto")
    mlx_lm.convert(
        str(tmp_path / "hf"),
        str(tmp_path / "mlx"),
        quantize=True,
        q_group_size=32,
        q_bits=4,
        dtype="float16",
        **settings,
    )
    if message:
        with pytest.raises(KodaError, match=message):
            mlx.read(tmp_path / "mlx")
        return
    config = read_json(tmp_path / "mlx/config.json")["quantization"]
    assert {layer["bits"] for layer in config.values() if isinstance(layer, dict)} == {4, 6}
    assert relative_error(model, mlx.read(tmp_path / "mlx")) < 0.2


@pytest.mark.parametrize("damage", ["shortened", "no config", "no tensor"])
def test_damaged_mlx_folder_is_refused_with_its_path(
    saved_model: Path, tokenizer_file: Path, tmp_path: Path, damage: str
) -> None:
    hf.write(tmp_path / "hf", weights.read(saved_model / "weights"), tokenizers.load(str(tokenizer_file)), "auto")
    mlx.write(tmp_path / "mlx", tmp_path / "hf", "4bit")
    file = tmp_path / "mlx/model.safetensors"
    (tmp_path / "mlx/._model.safetensors").write_bytes(b"macOS writes such files")
    if damage == "shortened":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "no config":
        (tmp_path / "mlx/config.json").write_text("{")
    else:
        import mlx.core as mx

        mx.save_safetensors(str(file), {name: t for name, t in mx.load(str(file)).items() if "norm" not in name})
    with pytest.raises(KodaError, match=str(tmp_path)):
        mlx.read(tmp_path / "mlx")


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        (True, "quantization = True is not an object"),
        ({"bits": 4}, "quantization has no group_size"),
        ({"bits": "4", "group_size": 64}, "quantization: bits = '4' is not a positive whole number"),
    ],
)
def test_quantization_of_another_form_is_refused(
    saved_model: Path, tokenizer_file: Path, tmp_path: Path, quantization: Any, message: str
) -> None:
    hf.write(tmp_path / "hf", weights.read(saved_model / "weights"), tokenizers.load(str(tokenizer_file)), "auto")
    mlx.write(tmp_path / "mlx", tmp_path / "hf", "4bit")
    change(tmp_path / "mlx", quantization=quantization)
    with pytest.raises(KodaError, match=rf"config\.json: {message}"):
        mlx.read(tmp_path / "mlx")


@pytest.mark.parametrize(
    ("added", "fields", "message"),
    [
        ({"model.layers.0.self_attn.q_norm.weight": 16}, {}, "q_norm.weight has no place"),
        ({"model.layers.0.self_attn.q_proj.bias": 64}, {}, "q_proj.bias has no place"),
        ({}, {"num_hidden_layers": 1}, r"model\.layers\.1\.\S+ has no place"),
        ({}, {"tie_word_embeddings": True}, r"lm_head\.weight differs .*tie_word_embeddings"),
    ],
)
def test_tensor_without_a_place_is_refused_in_an_mlx_folder(
    saved_model: Path, tokenizer_file: Path, tmp_path: Path, added: dict[str, int], fields: Any, message: str
) -> None:
    """And a file of another name beside the model's is not read."""
    hf.write(tmp_path / "hf", weights.read(saved_model / "weights"), tokenizers.load(str(tokenizer_file)), "auto")
    mlx.write(tmp_path / "mlx", tmp_path / "hf", "fp16")
    file = tmp_path / "mlx/model.safetensors"
    named = load_file(file)
    save_file({name: torch.full_like(tensor, 3.0) for name, tensor in named.items()}, tmp_path / "mlx/old.safetensors")
    before = mlx.read(tmp_path / "mlx").params["embedding"]
    assert not (before == 3.0).any()
    save_file({**named, **{name: torch.ones(size).half() for name, size in added.items()}}, file)
    change(tmp_path / "mlx", **fields)
    with pytest.raises(KodaError, match=message):
        mlx.read(tmp_path / "mlx")


def test_tokenizer_of_a_gguf_file_read_back_is_the_same(
    saved_model: Path, tokenizer_file: Path, tmp_path: Path
) -> None:
    from model.data import gguf_tokenizer
    from model.data import tokenizer as tokenizers
    from model.data.encoder import HARD

    gguf_file.write(
        tmp_path / "m.gguf",
        weights.read(saved_model / "weights"),
        tokenizers.load(str(tokenizer_file)),
        "F16",
        About("m"),
    )
    back = gguf_tokenizer.read(gguf_file.opened(tmp_path / "m.gguf"), tmp_path / "m.gguf")
    ours = tokenizers.load(str(tokenizer_file))
    assert [*map(back.plain, HARD)] == [*map(ours.plain, HARD)]
    assert back.end == ours.end and back.stops == ours.stops


def test_imported_model_runs_through_the_other_stages(tmp_path: Path, tokenizer_file: Path, prose: str) -> None:
    """koda import and koda run --from sft, as commands; weights that are not fine-tuned are exported unchanged.

    The model has SentencePiece's vocabulary and a chat template, which the exports keep.
    """
    save_random(tmp_path / "original", "bfloat16", attention_bias=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(__file__).parents[2] / "data/tiny-spm" / name, tmp_path / "original")
    template = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    template += "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    (tmp_path / "original/chat_template.jinja").write_text(template)
    (tmp_path / "text").mkdir()
    for number, start in enumerate(range(0, 80_000, 4_000)):
        (tmp_path / "text" / f"{number:02}.txt").write_text(prose[start : start + 4_000])
    rows = ({"instruction": f"Say {n}", "context": "", "response": "Yes."} for n in range(50))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = ["tokenize.source=text", "tokenize.heldout_fraction=0.2", "sft.source=rows.jsonl", "sft.steps=0"]
    sets += ["extend.factor=1", "sft.answer_limit=5", "convert.mlx=[]", 'convert.gguf=["BF16"]']
    settings = [part for text in sets for part in ("--set", text)]
    printed = run(tmp_path, KODA, "import", "original", "--name", "other", *settings)
    assert "koda run --name other --from sft" in printed and "its own; an answer ends with </s>" in printed
    run(tmp_path, KODA, "run", "--name", "other", "--from", "sft", "--until", "convert")
    before, after = all_tensors(tmp_path / "original"), all_tensors(tmp_path / "runs/other/convert/hf")
    assert all(torch.equal(before[name], after[name]) for name in before)
    exported = tmp_path / "runs/other/convert/hf"
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (exported / name).read_bytes() == (tmp_path / "original" / name).read_bytes()
    assert read_json(exported / "config.json")["eos_token_id"] == 2
    tokens = tokenizers.load(str(tmp_path / "runs/other/tokenize/tokenizer.json"))
    assert tokens.special.begins and (tmp_path / "runs/other/tokenize/heldout/00000.npy").is_file()
    stream = Shards(tmp_path / "runs/other/tokenize/heldout").read(0, 1)[0]
    assert stream[0] == tokens.special.bos
    # bfloat16 is written as it is: both files hold the model's own numbers. llama.cpp rounds what it multiplies with
    # them to bfloat16 too; transformers computes in float32 here.
    back = gguf_file.read(next((tmp_path / "runs/other/convert/gguf").glob("other-*K-BF16.gguf")))
    assert relative_error(weights.read(tmp_path / "runs/other/extend/weights"), back) == 0
    assert read_json(tmp_path / "runs/other/convert/parity.json")["hf"]["kl_divergence"] < 1e-8
