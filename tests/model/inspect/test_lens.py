"""One text through the network: the lens ends in the model's own output, and the parts of a logit add up to it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.inspect import lens
from model.inspect.walk import compiled
from model.llama import Llama
from tests.model.inspect.conftest import shaken


@pytest.fixture(scope="module", params=["plain", "biases"])
def network(request: pytest.FixtureRequest, model: Llama) -> Llama:
    if request.param == "plain":
        return model
    return shaken(attention_bias=True, mlp_bias=True, tie_word_embeddings=True)


def test_lens_of_the_last_layer_is_the_models_output(network: Llama, tokens: jax.Array) -> None:
    reading = compiled(lens.read)(network, tokens[0])
    logits_TV = network(tokens[:1])[0]
    logp_TV = jax.nn.log_softmax(logits_TV)
    view = reading.lens
    assert (view.top[-1] == logits_TV.argmax(-1)).all()
    assert jnp.allclose(view.probability[-1], jnp.exp(logp_TV.max(-1)), atol=1e-4)
    assert jnp.abs(view.divergence[-1]).max() < 1e-5 < view.divergence[0].max()
    known = logp_TV[jnp.arange(63), tokens[0, 1:]]
    assert jnp.allclose(view.logprob[-1, :-1], known, atol=1e-3)
    assert (view.rank[-1, :-1] == (logp_TV[:-1] > known[:, None]).sum(-1)).all()
    assert jnp.allclose(reading.logits_V, logits_TV[-1], atol=1e-3)


def test_a_token_settles_where_its_last_change_is(network: Llama, tokens: jax.Array) -> None:
    view = jax.tree.map(np.asarray, compiled(lens.read)(network, tokens[0])).lens
    for t, layer in enumerate(view.settles):
        assert (view.top[layer:, t] == view.top[-1, t]).all()
        assert layer == 0 or view.top[layer - 1, t] != view.top[-1, t]


def test_parts_of_a_logit_add_up_to_it(network: Llama, tokens: jax.Array) -> None:
    """In float32: 1e-4 of the largest part."""
    of = jnp.array([3, 200])
    parts = compiled(lens.attribute)(network, tokens[0], of)
    expected = network(tokens[:1])[0, -1, of]
    assert jnp.abs(parts.total() - expected).max() < 1e-4 * jnp.abs(parts.mlps).max()
    assert (jnp.abs(parts.biases).max() > 0) == (network.config.attention_bias)


def test_attention_is_causal_and_sums_to_one(network: Llama, tokens: jax.Array) -> None:
    attention = np.asarray(compiled(lens.read)(network, tokens[0]).attention_LHTS)
    assert np.allclose(attention.sum(-1), 1, atol=1e-5) and not np.triu(attention, 1).any()
