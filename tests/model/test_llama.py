"""The network against transformers, and its causality, by gradients.

Letters in names: B batch, T time, D model width, H query heads, K key/value heads, A head size.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import LlamaConfig as HFConfig
from transformers import LlamaForCausalLM

from model.attention import Segments, attend
from model.config import Compute, LlamaConfig
from model.export.hf_config import to_hf_config
from model.export.names import from_hf, to_hf
from model.llama import Cache, Dropout, Llama


def in_transformers(model: Llama) -> LlamaForCausalLM:
    theirs = LlamaForCausalLM(HFConfig(**to_hf_config(model.config, "float32"))).eval()
    tensors = {n: torch.tensor(np.asarray(t)) for n, t in to_hf(nnx.to_pure_dict(nnx.state(model, nnx.Param)))}
    missing, unexpected = theirs.load_state_dict(tensors, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    theirs.tie_weights()
    return theirs


@pytest.mark.parametrize("tied", [False, True])
def test_logits_equal_those_of_transformers(shape: LlamaConfig, tokens: jax.Array, tied: bool) -> None:
    """The same weights give the same logits, to float32's rounding. The rotary base is not the default one."""
    config = LlamaConfig(**{**shape.to_dict(), "tie_word_embeddings": tied, "rope_theta": 20452.2})
    model = Llama(config, rngs=nnx.Rngs(3))
    nnx.update(model, jax.tree.map(lambda p: p * 4 if p.ndim > 1 else p * 1.3, nnx.state(model, nnx.Param)))
    with torch.no_grad():
        theirs = in_transformers(model)(torch.tensor(np.asarray(tokens))).logits.numpy()
    ours = np.asarray(model(tokens))
    assert np.abs(ours).max() > 1  # logits near zero would agree in any case
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_weight_names_round_trip(model: Llama) -> None:
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    back = from_hf(dict(to_hf(params)), model.config.num_hidden_layers)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_attention_cannot_see_the_future(model: Llama, tokens: jax.Array) -> None:
    """Position 5's output has a gradient of exactly zero for each later input, and a nonzero one for each other."""
    x_BTD = model.embed(tokens[:1, :12])
    jacobian = jax.jacobian(lambda x_BTD: model.hidden(x_BTD)[0, 5])(x_BTD)[:, 0]
    assert not jacobian[:, 6:].any()
    assert all(jacobian[:, position].any() for position in range(6))


def test_attention_stays_within_a_segment(model: Llama, tokens: jax.Array) -> None:
    segments = Segments(jnp.array([[1] * 4 + [2] * 8]))
    x_BTD = model.embed(tokens[:1, :12])
    jacobian = jax.jacobian(lambda x_BTD: model.hidden(x_BTD, segments)[0, 9])(x_BTD)[:, 0]
    assert not jacobian[:, :4].any() and not jacobian[:, 10:].any()
    assert all(jacobian[:, position].any() for position in range(4, 10))


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("first", [150, 40], ids=["one document", "two documents"])
def test_blocks_of_queries_equal_plain_attention(backend: str, first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention in blocks against JAX's own, at a length that is not a multiple of the block."""
    monkeypatch.setattr("model.attention.jax.default_backend", lambda: backend)
    monkeypatch.setattr("model.attention.GPU_BLOCK", 100)
    q, k, v = (jax.random.normal(jax.random.key(n), (2, 150, heads, 16)) for n, heads in ((0, 6), (1, 2), (2, 2)))
    segments = Segments(jnp.array([[1] * first + [2] * (150 - first)] * 2))

    def plain(q: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(
            q, k, v, is_causal=True, mask=segments.visible(slice(None), slice(None))[:, None]
        )

    def ours(q: jax.Array) -> jax.Array:
        return attend(q, k, v, segments)

    np.testing.assert_allclose(ours(q), plain(q), atol=2e-6)
    gradients = [jax.grad(lambda q, of=of: (of(q) ** 2).sum())(q) for of in (ours, plain)]
    np.testing.assert_allclose(*gradients, atol=2e-5)


def test_the_gradient_of_a_frequent_token_is_not_lost_in_half_precision(shape: LlamaConfig) -> None:
    """A sum in bfloat16 stops growing at 256 times its addends."""
    model = Llama(shape, Compute(dtype="bfloat16"), rngs=nnx.Rngs(0))
    grads = nnx.grad(lambda model: model.embed(jnp.zeros((1, 4096), jnp.int32)).astype(jnp.float32).sum())(model)
    np.testing.assert_array_equal(grads.embedding[...][0], 4096)


def test_decoding_with_a_cache_gives_the_same_logits(model: Llama, tokens: jax.Array) -> None:
    whole = model(tokens)
    cache = Cache.empty(model.config, 2, 64)
    first, cache = model.decode(tokens[:, :20], cache, jnp.int32(0))
    np.testing.assert_allclose(first, whole[:, :20], atol=1e-4)
    for position in range(20, 25):
        logits, cache = model.decode(tokens[:, position : position + 1], cache, jnp.int32(position))
        np.testing.assert_allclose(logits[:, 0], whole[:, position], atol=1e-4)


@pytest.mark.parametrize("compute", [Compute(scan=True), Compute(remat="full"), Compute(remat="dots", scan=True)])
def test_remat_and_scan_change_no_gradient(model: Llama, tokens: jax.Array, compute: Compute) -> None:
    def gradient(compute: Compute) -> jax.Array:
        graph, state = nnx.split(model)
        rebuilt = nnx.merge(graph, state)
        rebuilt.compute = compute
        graph, state = nnx.split(rebuilt)
        return jax.grad(lambda s: (nnx.merge(graph, s)(tokens) ** 2).mean())(state)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradient(compute), gradient(Compute())
    )


def test_bfloat16_differs_from_float32_by_rounding_alone(shape: LlamaConfig, tokens: jax.Array) -> None:
    """bfloat16 has 8 bits: each of the 2 layers' 4 sums may be off by 2^-8 of its size."""
    full = Llama(shape, rngs=nnx.Rngs(0))
    half = Llama(shape, Compute(dtype="bfloat16"), rngs=nnx.Rngs(0))
    assert half.hidden(half.embed(tokens)).dtype == jnp.bfloat16
    error = jnp.linalg.norm(half(tokens) - full(tokens)) / jnp.linalg.norm(full(tokens))
    assert 0 < error < 8 * 2**-8


def test_the_1_3b_shape_has_its_known_number_of_parameters() -> None:
    reference = LlamaConfig(
        vocab_size=50257,
        hidden_size=2048,
        num_hidden_layers=24,
        num_attention_heads=32,
        num_key_value_heads=8,
        intermediate_size=5504,
        max_position_embeddings=1024,
    )
    assert reference.parameters == 1_269_209_088


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_parameter_count_equals_that_of_the_network(shape: LlamaConfig, tied: bool, qk_norm: bool) -> None:
    config = LlamaConfig(**{**shape.to_dict(), "tie_word_embeddings": tied, "qk_norm": qk_norm})
    params = nnx.state(Llama(config, rngs=nnx.Rngs(0)), nnx.Param)
    assert config.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_qk_norm_bounds_the_scores(shape: LlamaConfig, tokens: jax.Array) -> None:
    """Queries and keys have length √head_dim, however large their inputs are; causality is kept."""
    model = Llama(replace(shape, qk_norm=True), rngs=nnx.Rngs(0))
    layer = jax.tree.map(lambda leaf: leaf[0], nnx.state(model.layers.attention, nnx.Param))
    attention = nnx.merge(nnx.graphdef(model.layers.attention), layer)
    angles = model.angles(jnp.arange(64)[None])
    for scale in (1e2, 1e5):
        q_BTHA, k_BTKA, _ = attention.project(scale * model.embed(tokens), angles)
        for x in (q_BTHA, k_BTKA):
            np.testing.assert_allclose(jnp.linalg.norm(x, axis=-1), shape.head_dim**0.5, rtol=1e-3)
    changed = model(tokens.at[:, 40].add(1))
    np.testing.assert_array_equal(changed[:, :40], model(tokens)[:, :40])


def test_dropout_keeps_the_mean_and_each_place_draws_for_itself() -> None:
    """Of 2^20 ones: what is kept is scaled up, and its mean is within 5 standard errors, √(p / (1 - p)) / 2^10."""
    ones, dropout = jnp.ones((16, 256, 256)), Dropout(0.2, jax.random.key(0))
    first, second = dropout.of(0)(ones), dropout.of(1)(ones)
    assert set(np.unique(first)) == {0.0, np.float32(1.25)}
    assert abs(float(first.mean()) - 1) < 5 * (0.2 / 0.8) ** 0.5 / 2**10
    both = float(((first > 0) & (second > 0)).mean())
    assert abs(both - 0.8**2) < 5 * (0.64 * 0.36) ** 0.5 / 2**10


def test_each_layer_and_both_its_parts_drop_something(model: Llama, tokens: jax.Array) -> None:
    """With all of it dropped, what comes out of the layers is what went in."""
    x_BTD = model.embed(tokens)
    dropped = model.hidden(x_BTD, dropout=Dropout(1 - 1e-7, jax.random.key(0)))
    np.testing.assert_array_equal(dropped, model.norm(x_BTD))
    half = [model.hidden(x_BTD, dropout=Dropout(0.5, jax.random.key(seed))) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(half[0], half[1])
    assert float(jnp.abs(half[0] - half[2]).max()) > 0.1
