"""The gate: it lets good exports through and catches planted faults."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from model import weights
from model.data import tokenizer as tokenizers
from model.data.shards import ShardWriter
from model.errors import KodaError
from model.evaluation.context import Method, stretched, under
from model.export import gguf, hf
from model.export.parity import compare, divergence
from model.llama import Llama
from tests.conftest import SHAPE


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path, prose: str) -> Path:
    """Random weights, large enough that every part shows, with a rotary base that is not the default one."""
    folder = tmp_path_factory.mktemp("made")
    shape = replace(SHAPE, vocab_size=512, max_position_embeddings=128, rope_theta=500.0)
    model = Llama(shape, rngs=nnx.Rngs(0))
    nnx.update(model, jax.tree.map(lambda p: p * 6 if p.ndim > 1 else p, nnx.state(model, nnx.Param)))
    weights.save(folder / "weights", model)
    tokenizer = tokenizers.load(str(tokenizer_file))
    writer = ShardWriter(folder / "heldout", 512, 10_000)
    writer.add(tokenizers.encode_plain(tokenizer, [prose[:20_000]])[0])
    writer.close()
    return folder


def gate(made: Path, tokenizer_file: Path, kind: str, path: Path, limit: float = 1e-5) -> dict:
    return compare(
        kind, str(path), str(made / "weights"), str(tokenizer_file), str(made / "heldout"), old_context=64, limit=limit
    )


def test_good_exports_pass(made: Path, tokenizer_file: Path, tmp_path: Path) -> None:
    model = weights.load(made / "weights")
    gguf.write(tmp_path / "f32.gguf", model, tokenizer_file, "F32", "x")
    hf.write(tmp_path / "hf", model, tokenizer_file, "float32")
    for kind, path in (("gguf", tmp_path / "f32.gguf"), ("hf", tmp_path / "hf")):
        figures = gate(made, tokenizer_file, kind, path)
        assert figures["max_logprob_difference"] < 1e-3 and figures["longest_prefix"] == 127


@pytest.mark.parametrize("method", ["ntk", "linear", "yarn"])
def test_every_runtime_reads_on_as_jax_does(made: Path, tokenizer_file: Path, tmp_path: Path, method: Method) -> None:
    """Each way of stretching, to the end of four times the context, in all three runtimes."""
    from model.export import mlx

    old = weights.load(made / "weights")
    old.config = replace(old.config, max_position_embeddings=32)
    model = under(old, stretched(old.config, 4, method))
    weights.save(tmp_path / "weights", model)
    (tmp_path / "heldout").symlink_to(made / "heldout")
    gguf.write(tmp_path / "f32.gguf", model, tokenizer_file, "F32", "x")
    hf.write(tmp_path / "hf", model, tokenizer_file, "float32")
    mlx.write(tmp_path / "mlx", tmp_path / "hf", 16)
    # half precision rounds these weights, which are six times the usual size, to some 1e-4
    for kind, path, limit in (("gguf", "f32.gguf", 1e-5), ("hf", "hf", 1e-5), ("mlx", "mlx", 1e-3)):
        figures = gate(tmp_path, tokenizer_file, kind, tmp_path / path, limit)
        assert figures["longest_prefix"] == 127


@pytest.mark.parametrize("fault", ["q/k not permuted", "k by the wrong heads", "gate and up swapped", "rope base lost"])
def test_faults_in_the_weights_are_caught(
    made: Path, tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    model = weights.load(made / "weights")
    if fault == "q/k not permuted":
        monkeypatch.setattr(gguf, "interleave", lambda rows, heads: rows)
    elif fault == "k by the wrong heads":
        right = gguf.interleave
        monkeypatch.setattr(gguf, "interleave", lambda rows, heads: right(rows, 4))
    elif fault == "gate and up swapped":
        monkeypatch.setitem(gguf.NAMES, "mlp.gate_proj", "ffn_up")
        monkeypatch.setitem(gguf.NAMES, "mlp.up_proj", "ffn_gate")
    else:
        model.config = replace(model.config, rope_theta=10000.0)
    gguf.write(tmp_path / "bad.gguf", model, tokenizer_file, "F32", "x")
    with pytest.raises(KodaError, match=r"bad\.gguf disagrees with the JAX model: KL divergence"):
        gate(made, tokenizer_file, "gguf", tmp_path / "bad.gguf")


def test_another_pre_tokenizer_is_caught(
    made: Path, tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = gguf.GGUFWriter.add_tokenizer_pre
    monkeypatch.setattr(gguf.GGUFWriter, "add_tokenizer_pre", lambda self, name: right(self, "default"))
    gguf.write(tmp_path / "bad.gguf", weights.load(made / "weights"), tokenizer_file, "F32", "x")
    with pytest.raises(KodaError, match=r"bad\.gguf splits"):
        gate(made, tokenizer_file, "gguf", tmp_path / "bad.gguf")


def test_a_rotary_base_that_transformers_4_would_lose_is_written_for_it(
    made: Path, tokenizer_file: Path, tmp_path: Path
) -> None:
    hf.write(tmp_path / "hf", weights.load(made / "weights"), tokenizer_file, "float32")
    config = json.loads((tmp_path / "hf/config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 500.0 and config["rope_scaling"] is None
    assert (
        json.loads((tmp_path / "hf/tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    )


def test_the_divergence_of_equals_is_nothing_and_never_negative() -> None:
    p, q = (np.log(np.random.default_rng(seed).dirichlet(np.ones(50))).astype(np.float32) for seed in (0, 1))
    assert divergence(p, p) == 0 and divergence(p, q) > 0.1
    assert divergence(p, p + np.float32(1e-4)) == pytest.approx(0, abs=1e-12)  # a constant is no difference
