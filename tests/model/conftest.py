from dataclasses import replace
from pathlib import Path

import jax
import pytest
from flax import nnx

from model import weights
from model.data import tokenizer as tokenizers
from model.data.shards import ShardWriter
from model.export.expectation import Expected, expectation
from model.llama import Llama
from tests.conftest import SHAPE


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path, prose: str) -> Path:
    """Random weights, large enough that every part affects the logits, with a rotary base that is not the default."""
    folder = tmp_path_factory.mktemp("saved_model")
    shape = replace(SHAPE, vocab_size=512, max_position_embeddings=128, rope_theta=500.0)
    model = Llama(shape, rngs=nnx.Rngs(0))
    nnx.update(model, jax.tree.map(lambda p: p * 6 if p.ndim > 1 else p, nnx.state(model, nnx.Param)))
    weights.save(folder / "weights", model)
    vocabulary = tokenizers.load(str(tokenizer_file))
    writer = ShardWriter(folder / "heldout", 512, 10_000)
    writer.add(vocabulary.plain(prose[:20_000]))
    writer.close()
    return folder


@pytest.fixture(scope="session")
def expected(saved_model: Path, tokenizer_file: Path) -> Expected:
    """The JAX model's outputs, computed once: every export of `saved_model` is compared with them."""
    return expectation(saved_model / "weights", tokenizer_file, saved_model / "heldout", old_context=64)
