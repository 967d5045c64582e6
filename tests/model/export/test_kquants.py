"""K-quants: llama.cpp's own choice of types, its own rounding, and the importance matrix."""

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from gguf import GGMLQuantizationType, quants

from model import weights
from model.config import LlamaConfig
from model.data import tokenizer as tokenizers
from model.data.shards import ShardWriter
from model.errors import KodaError
from model.export import gguf_file, kquants
from model.export.convert import write
from model.export.expectation import expectation
from model.export.names import shapes
from model.export.parity import Limits, judge
from model.llama import Llama
from tasks.convert import Convert
from tests.conftest import SHAPE

ABOUT = {"name": "m", "author": "", "license": "", "url": "", "datasets": []}
LLAMA_7B = replace(SHAPE, hidden_size=4096, head_dim=1024, intermediate_size=11008, num_hidden_layers=32)
TINYLLAMA = replace(SHAPE, hidden_size=2048, head_dim=512, intermediate_size=5632, num_hidden_layers=22)
SMOLLM = replace(
    SHAPE,
    hidden_size=576,
    head_dim=64,
    num_attention_heads=9,
    num_key_value_heads=3,
    intermediate_size=1536,
    num_hidden_layers=30,
)


@pytest.mark.parametrize(
    ("shape", "kind", "counts"),
    [
        (LLAMA_7B, "Q6_K", {"Q6_K": 226}),
        (LLAMA_7B, "Q5_K_M", {"Q5_K": 193, "Q6_K": 33}),
        (LLAMA_7B, "Q5_K_S", {"Q5_K": 225, "Q6_K": 1}),
        (LLAMA_7B, "Q4_K_M", {"Q4_K": 193, "Q6_K": 33}),
        (LLAMA_7B, "Q4_K_S", {"Q4_K": 217, "Q5_K": 8, "Q6_K": 1}),
        (LLAMA_7B, "Q3_K_M", {"Q3_K": 129, "Q4_K": 92, "Q5_K": 4, "Q6_K": 1}),
        (TINYLLAMA, "Q4_K_M", {"Q4_K": 135, "Q6_K": 21}),
        (replace(SMOLLM, tie_word_embeddings=True), "Q4_K_M", {"Q5_0": 166, "Q8_0": 15, "Q4_K": 16, "Q6_K": 14}),
    ],
)
def test_types_are_those_of_the_files_that_llama_cpp_makes(
    shape: LlamaConfig, kind: str, counts: dict[str, int]
) -> None:
    """As llama.cpp prints them when it loads such a file; of widths that are no multiple of 256, its replacements."""
    layers, tied = shape.num_hidden_layers, shape.tie_word_embeddings
    matrices = {gguf_file.gguf_name(name): size for name, size in shapes(shape).items() if len(size) > 1}
    types = [kquants.tensor_type(kind, name, width, layers, tied) for name, (_, width) in matrices.items()]
    assert Counter(types) == counts


def test_width_that_cannot_be_quantised_is_named() -> None:
    quantised = Convert.model_construct(gguf=("Q4_K_M",))
    assert "intermediate_size = 520 is not a multiple of 32" in quantised.misfit(replace(SHAPE, intermediate_size=520))
    assert not quantised.misfit(SMOLLM)


def test_missing_llama_cpp_is_reported_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    kquants._library.cache_clear()
    with pytest.raises(KodaError, match=r"own quantiser \(xllamacpp\), which is not installed.*--group verify"):
        kquants.quantise(np.zeros((1, 256), np.float32), "Q4_K")


@pytest.mark.parametrize("type_", ["Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q4_0", "Q5_0", "Q5_1"])
def test_importance_makes_the_errors_smaller_where_they_count(type_: str) -> None:
    """An eighth of the columns have inputs ten times as large: what a rounding costs is the error of the product."""
    draw = np.random.default_rng(0)
    rows = draw.standard_normal((64, 512)).astype(np.float32)
    importance = np.where(draw.random(512) < 1 / 8, 100.0, 1.0)

    def cost(importance: np.ndarray | None) -> float:
        stored = quants.dequantize(kquants.quantise(rows, type_, importance), GGMLQuantizationType[type_])
        return float(((stored - rows) ** 2 @ weighting).sum())

    weighting = importance
    assert cost(importance) < 0.9 * cost(None)


def test_rows_are_the_same_bytes_however_many_threads_round_them(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).standard_normal((37, 512)).astype(np.float32)
    stored = []
    for processors in (1, 5, 64):
        monkeypatch.setattr("os.cpu_count", lambda count=processors: count)
        stored.append(kquants.quantise(rows, "Q4_K").tobytes())
    assert len(set(stored)) == 1


@pytest.mark.parametrize(("kind", "width"), [("Q4_K_M", 256), ("Q6_K", 256), ("Q4_K_M", 96)])
def test_k_quant_equals_the_model_but_for_its_rounding(
    tmp_path: Path, tokenizer_file: Path, prose: str, kind: str, width: int
) -> None:
    """With an importance matrix of a text, opened in llama.cpp, and read back."""
    widths = {"hidden_size": width, "head_dim": width // 4, "intermediate_size": 256}
    shape = replace(SHAPE, vocab_size=512, max_position_embeddings=128, **widths)
    weights.save(tmp_path / "weights", Llama(shape, rngs=nnx.Rngs(0)))
    for part, start in (("heldout", 0), ("train", 9_000)):
        writer = ShardWriter(tmp_path / part, 512, 10_000)
        writer.add(tokenizers.load(str(tokenizer_file)).plain(prose[start : start + 9_000]))
        writer.close()
    parts = [str(tmp_path / "weights"), str(tokenizer_file), str(tmp_path)]
    (export,) = write(*parts, ABOUT, {"gguf": (kind,)}, str(tmp_path / "train"))
    names = sorted(path.name for path in (tmp_path / "gguf").iterdir())
    assert names == ["Modelfile", Path(export.path).name, "params", "template"]
    reader = gguf_file.opened(tmp_path / export.path)
    types = {tensor.tensor_type.name for tensor in reader.tensors}
    assert types == {"Q4_K_M": {"F32", "Q4_K", "Q6_K"}, "Q6_K": {"F32", "Q6_K"}}[kind] or width == 96
    assert gguf_file.value(reader, gguf_file.IMPORTANCE) == 15
    expected = expectation(tmp_path / "weights", tokenizer_file, tmp_path / "heldout", old_context=64)
    figures = judge("gguf", tmp_path / export.path, Limits(0.2, 1.3), expected)
    assert figures.failed == [] and figures.kl_divergence > 1e-8
