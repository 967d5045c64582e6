from dataclasses import replace
from pathlib import Path

import jax
import pytest
from flax import nnx

from model import weights
from model.data import tokenizer as tokenizers
from model.data.shards import ShardWriter
from model.export.parity import Expected, expectation
from model.llama import Llama
from tests.conftest import SHAPE


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def expected(made: Path, tokenizer_file: Path) -> Expected:
    """What the JAX model says: computed once, since every export of `made` is held against the same."""
    return expectation(made / "weights", tokenizer_file, made / "heldout", old_context=64)
