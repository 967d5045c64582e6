import jax
import numpy as np
from flax import nnx

from model.config import LORA_TARGETS, LlamaConfig
from model.llama import Llama
from model.lora import add_lora, merge_lora


def test_an_update_starts_at_zero_and_merging_it_keeps_the_logits(shape: LlamaConfig, tokens: jax.Array) -> None:
    model = Llama(shape, rngs=nnx.Rngs(0))
    before = model(tokens)
    add_lora(model, 4, 8.0, tuple(LORA_TARGETS), rngs=nnx.Rngs(1))
    np.testing.assert_array_equal(model(tokens), before)
    updates = nnx.state(model, nnx.LoRAParam)
    assert len(jax.tree.leaves(updates)) == 2 * len(LORA_TARGETS)
    nnx.update(model, jax.tree.map(lambda leaf: leaf + 0.05, updates))
    adapted = model(tokens)
    assert np.abs(adapted - before).max() > 1e-3
    merge_lora(model)
    assert not jax.tree.leaves(nnx.state(model, nnx.LoRAParam))
    np.testing.assert_allclose(model(tokens), adapted, atol=1e-5)
