"""K-quants, by llama.cpp's own quantiser where it is installed."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from flax import nnx

from model import weights
from model.data import tokenizer as tokenizers
from model.data.shards import ShardWriter
from model.errors import KodaError
from model.export import gguf_file, kquants
from model.export.convert import write
from model.export.parity import Limits, expectation, judge
from model.llama import Llama
from tasks.convert import Convert
from tests.conftest import SHAPE

TINY = replace(SHAPE, hidden_size=192, intermediate_size=512, num_attention_heads=6, head_dim=32)


def test_missing_quantiser_is_reported_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(KodaError, match=r"llama.cpp's own quantiser, which is not installed: .*kquants"):
        Convert(gguf=("F16", "Q4_K_M"))
    Convert(gguf=("F16", "Q8_0"))  # these need nothing


def test_width_that_cannot_be_quantised_is_named() -> None:
    quantised = Convert.model_construct(gguf=("Q4_K_M",))
    assert "hidden_size = 192 is not a multiple of 256" in quantised.misfit(TINY)
    assert not Convert().misfit(TINY)


@pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="the extra `kquants` is not installed: it compiles llama.cpp"
)
@pytest.mark.parametrize("kind", ["Q4_K_M", "Q6_K"])
def test_k_quant_equals_the_model_but_for_its_rounding(
    tmp_path: Path, tokenizer_file: Path, prose: str, kind: str
) -> None:
    """Written by llama.cpp from a file that is removed afterwards, opened in llama.cpp, and read back."""
    shape = replace(SHAPE, vocab_size=512, hidden_size=256, intermediate_size=256, max_position_embeddings=128)
    weights.save(tmp_path / "weights", Llama(shape, rngs=nnx.Rngs(0)))
    writer = ShardWriter(tmp_path / "heldout", 512, 10_000)
    writer.add(tokenizers.load(str(tokenizer_file)).plain(prose[:9_000]))
    writer.close()
    about = {"name": "m", "author": "", "license": "", "url": "", "datasets": []}
    (export,) = write(str(tmp_path / "weights"), str(tokenizer_file), str(tmp_path), about, {"gguf": (kind,)})
    assert sorted(p.name for p in (tmp_path / "gguf").iterdir()) == ["Modelfile", f"m-{kind}.gguf"]
    types = {tensor.tensor_type.name for tensor in gguf_file.opened(tmp_path / export.path).tensors}
    assert types <= {"F32", "Q4_K", "Q6_K"} and ("Q4_K" in types) == (kind == "Q4_K_M")
    expected = expectation(tmp_path / "weights", tokenizer_file, tmp_path / "heldout", old_context=64)
    figures = judge("gguf", tmp_path / export.path, Limits(0.2, 1.3), expected)
    assert figures.failed == [] and figures.kl_divergence > 1e-8
    assert kquants.SUPERBLOCK == 256
