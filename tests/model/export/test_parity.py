"""The comparison with the JAX model: exports that agree pass, and planted faults fail, in each of the runtimes."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model import weights
from model.data import tokenizer as tokenizers
from model.export import gguf_file
from model.export.about import About
from model.export.expectation import Expected, expectation
from model.export.formats import hf, mlx
from model.export.parity import Limits, compare, divergence, judge
from model.files import read_json, write_json
from model.stored import Stored
from model.stretch import Method, stretched

EXACT = Limits(1e-5, 1.001)  # what float32 files of these weights, six times the usual size, may differ by


def write_gguf(path: Path, model: Stored, tokenizer_file: Path, kind: str = "F32") -> Path:
    gguf_file.write(path, model, tokenizers.load(str(tokenizer_file)), kind, About("x"))
    return path


@pytest.mark.parametrize("method", ["ntk", "linear", "yarn"])
def test_every_runtime_computes_a_longer_context_as_jax_does(
    saved_model: Path, tokenizer_file: Path, tmp_path: Path, method: Method
) -> None:
    """Each way of stretching, to the end of four times the context, in all three runtimes."""
    old = weights.read(saved_model / "weights")
    config = replace(old.config, max_position_embeddings=32)
    model = Stored(stretched(config, 4, method), old.params)
    weights.write(tmp_path / "weights", model)
    expected = expectation(tmp_path / "weights", tokenizer_file, saved_model / "heldout", old_context=64)
    write_gguf(tmp_path / "f32.gguf", model, tokenizer_file)
    hf.write(tmp_path / "hf", model, tokenizers.load(str(tokenizer_file)), "auto", shard=100_000)
    mlx.write(tmp_path / "mlx", tmp_path / "hf", "fp16")
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 2  # several files are read
    # half precision rounds these weights to some 1e-4
    for kind, path, limits in (("gguf", "f32.gguf", EXACT), ("hf", "hf", EXACT), ("mlx", "mlx", Limits(1e-3, 1.01))):
        figures = judge(kind, tmp_path / path, limits, expected)
        assert figures.failed == [] and figures.longest_prefix == 127, path
        assert figures.kl_divergence_beyond <= limits.kl
        if kind != "mlx":
            assert figures.greedy_equal == 64 and figures.same_answer


def swapped_gate_and_up(model: Stored) -> Stored:
    layers = model.params["layers"]
    mlp = {**layers["mlp"], "gate": layers["mlp"]["up"], "up": layers["mlp"]["gate"]}
    return model._replace(params={**model.params, "layers": {**layers, "mlp": mlp}})


def padded(model: Stored) -> Stored:
    rows = {name: np.pad(model.params[name], ((0, 64), (0, 0))) for name in ("embedding", "head")}
    return Stored(replace(model.config, vocab_size=model.config.vocab_size + 64), {**model.params, **rows})


def other_base(model: Stored) -> Stored:
    return model._replace(config=replace(model.config, rope_theta=10000.0))


FAULTS: dict[str, tuple[Callable[[Stored], Stored], str, str]] = {
    "gate and up swapped": (swapped_gate_and_up, "KL divergence", "layer 0, mlp.gate_proj"),
    "rope base lost": (other_base, "KL divergence", "rope_theta = 10000.0, the model has 500.0"),
    "padded vocabulary left in": (padded, "gives 576 logits, the JAX model 512", "vocab_size = 576"),
}


@pytest.mark.parametrize("kind", ["hf", "gguf", "mlx"])
@pytest.mark.parametrize("fault", FAULTS)
def test_fault_in_the_numbers_is_caught_and_named(
    saved_model: Path, expected: Expected, tokenizer_file: Path, tmp_path: Path, fault: str, kind: str
) -> None:
    plant, reason, place = FAULTS[fault]
    model = plant(weights.read(saved_model / "weights"))
    if kind == "gguf":
        write_gguf(tmp_path / "gguf", model, tokenizer_file)
    else:
        hf.write(tmp_path / "hf", model, tokenizers.load(str(tokenizer_file)), "auto")
        if kind == "mlx":
            mlx.write(tmp_path / "mlx", tmp_path / "hf", "fp16")
    figures = judge(kind, tmp_path / kind, Limits(1e-3, 1.01), expected)
    assert reason in figures.failed[0] and place in figures.first_difference


def test_export_of_too_few_bits_for_its_model_is_told_from_a_faulty_one(
    saved_model: Path, expected: Expected, tokenizer_file: Path, tmp_path: Path
) -> None:
    hf.write(tmp_path / "hf", weights.read(saved_model / "weights"), tokenizers.load(str(tokenizer_file)), "auto")
    mlx.write(tmp_path / "4bit", tmp_path / "hf", "4bit")
    figures = judge("mlx", tmp_path / "4bit", EXACT, expected)
    assert "KL divergence" in figures.failed[0]
    assert "so few bits cost this model more" in figures.first_difference and "convert.mlx" in figures.first_difference


@pytest.mark.parametrize("heads", [None, 4])
def test_rows_that_llama_cpp_pairs_differently_are_caught(
    saved_model: Path,
    expected: Expected,
    tokenizer_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    heads: int | None,
) -> None:
    """Queries and keys as transformers has them; or keys permuted by the number of query heads."""
    right = gguf_file.interleave
    wrong: Any = (lambda rows, _: rows) if heads is None else (lambda rows, _: right(rows, heads))
    monkeypatch.setattr(gguf_file, "interleave", wrong)
    figures = judge(
        "gguf",
        write_gguf(tmp_path / "bad.gguf", weights.read(saved_model / "weights"), tokenizer_file),
        EXACT,
        expected,
    )
    assert "KL divergence" in figures.failed[0]
    assert ("q_proj" if heads is None else "k_proj") in figures.first_difference


@pytest.mark.parametrize(
    ("method", "wrong", "reason"),
    [
        ("add_tokenizer_pre", "default", "it splits"),
        ("add_eos_token_id", 65, "tokens [0, 65] end its answers, and not [0]"),  # 65 is the letter a
        ("add_chat_template", "{{ messages[0]['content'] }}", "its chat template makes"),
    ],
)
def test_fault_in_the_tokenizer_of_a_gguf_file_is_caught(
    saved_model: Path,
    expected: Expected,
    tokenizer_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    wrong: str | int,
    reason: str,
) -> None:
    right = getattr(gguf_file.GGUFWriter, method)
    monkeypatch.setattr(gguf_file.GGUFWriter, method, lambda self, _: right(self, wrong))
    figures = judge(
        "gguf",
        write_gguf(tmp_path / "bad.gguf", weights.read(saved_model / "weights"), tokenizer_file),
        EXACT,
        expected,
    )
    assert any(reason in failure for failure in figures.failed)
    assert "the fault is in the rest of it" in figures.first_difference


@pytest.mark.parametrize(
    ("file", "key", "wrong", "reason"),
    [
        ("generation_config.json", "eos_token_id", None, "tokens [] end its answers, and not [0]"),
        ("tokenizer_config.json", "chat_template", "{{ messages[0]['content'] }}", "its chat template makes"),
    ],
)
def test_fault_in_the_tokenizer_of_a_hugging_face_folder_is_caught(
    saved_model: Path,
    expected: Expected,
    tokenizer_file: Path,
    tmp_path: Path,
    file: str,
    key: str,
    wrong: Any,
    reason: str,
) -> None:
    folder = tmp_path / "hf"
    hf.write(folder, weights.read(saved_model / "weights"), tokenizers.load(str(tokenizer_file)), "auto")
    write_json(folder / file, {**read_json(folder / file), key: wrong})
    if key == "eos_token_id":  # where transformers would take it from
        write_json(folder / "config.json", {**read_json(folder / "config.json"), key: wrong})
    else:
        (folder / "chat_template.jinja").unlink()
    figures = judge("hf", folder, EXACT, expected)
    assert any(reason in failure for failure in figures.failed)


def test_another_pre_tokenizer_is_caught_in_a_hugging_face_folder(
    saved_model: Path, expected: Expected, tokenizer_file: Path, tmp_path: Path
) -> None:
    hf.write(tmp_path / "hf", weights.read(saved_model / "weights"), tokenizers.load(str(tokenizer_file)), "auto")
    raw = json.loads((tmp_path / "hf/tokenizer.json").read_text())
    raw["pre_tokenizer"]["use_regex"] = False
    write_json(tmp_path / "hf/tokenizer.json", raw)
    assert any("it splits" in failure for failure in judge("hf", tmp_path / "hf", EXACT, expected).failed)


def test_file_that_does_not_open_fails_and_the_others_are_still_compared(
    saved_model: Path, expected: Expected, tokenizer_file: Path, tmp_path: Path
) -> None:
    good = write_gguf(tmp_path / "good.gguf", weights.read(saved_model / "weights"), tokenizer_file)
    (tmp_path / "cut.gguf").write_bytes(good.read_bytes()[:-5000])
    expected.write(tmp_path / "expected")
    figures = compare(
        format_="gguf",
        folder=str(tmp_path),
        limits={"cut.gguf": EXACT, "good.gguf": EXACT},
        expected=str(tmp_path / "expected"),
    )
    assert "its runtime does not load it" in figures["cut.gguf"].failed[0] and figures["good.gguf"].failed == []


def test_divergence_of_equals_is_zero_and_never_negative() -> None:
    p, q = (np.log(np.random.default_rng(seed).dirichlet(np.ones(50))).astype(np.float32) for seed in (0, 1))
    assert divergence(p, p) == 0 and divergence(p, q) > 0.1
    assert divergence(p, p + np.float32(1e-4)) == pytest.approx(0, abs=1e-12)  # a constant is no difference
