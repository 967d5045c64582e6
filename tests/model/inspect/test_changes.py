"""What changed between two models: planted updates are found, and nothing where nothing was planted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model.inspect import changes, spectra
from model.inspect.circuits import copying
from model.inspect.heads import Probe, score
from model.inspect.learning import _emergence
from model.inspect.walk import compiled, walk
from model.llama import Llama
from tests.model.inspect.conftest import shaken


def with_update(model: Llama, update_IO: np.ndarray) -> Llama:
    """A copy whose query matrix of layer 1 has an update."""
    copy = nnx.clone(model)
    kernel = copy.layers.attention.query.kernel
    kernel[...] = kernel[...].at[1].add(jnp.asarray(update_IO, jnp.float32))
    return copy


def test_large_update_of_rank_one_is_one_new_direction(model: Llama) -> None:
    kernel_IO = np.asarray(model.layers.attention.query.kernel[...][1], np.float64)
    draw = np.random.default_rng(0)
    left, right = (vector / np.linalg.norm(vector) for vector in draw.normal(size=(2, 64)))
    largest = np.linalg.svd(kernel_IO)[1][0]
    found = changes.updates(model, with_update(model, 3 * largest * np.outer(left, right)))
    change = found["q_proj"][1]
    assert change.values[:2] == pytest.approx([3, 0], abs=1e-3) and change.new_directions == 1
    assert change.effective_rank == pytest.approx(1, abs=0.05)
    others = [one for name, row in found.items() for layer, one in enumerate(row) if (name, layer) != ("q_proj", 1)]
    assert not any(one.values[0] or one.new_directions for one in others)


def test_scaling_a_matrix_is_no_new_direction(model: Llama) -> None:
    kernel_IO = np.asarray(model.layers.attention.query.kernel[...][1])
    assert changes.updates(model, with_update(model, 0.5 * kernel_IO))["q_proj"][1].new_directions == 0


def test_equal_models_predict_the_same(model: Llama, tokens: jax.Array) -> None:
    same = changes.compare(model, model, np.asarray(tokens[0]))
    assert jnp.abs(same.divergence).max() < 1e-5 and same.same_top.all()
    other = changes.compare(model, with_update(model, np.full((64, 64), 0.3)), np.asarray(tokens[0]))
    assert other.divergence.max() > 0.01 and (other.divergence > -1e-5).all()


def test_ranks_of_known_spectra() -> None:
    values = np.array([[1.0, 1.0, 1.0, 1.0], [5.0, 0.0, 0.0, 0.0], [2.0, 1.0, 0.0, 0.0]])
    assert spectra.effective_rank(values) == pytest.approx([4, 1, 1.8899], abs=1e-3)  # 3 / 4^(1/3)
    assert spectra.stable_rank(values) == pytest.approx([4, 1, 1.25])
    kernel = np.random.default_rng(0).normal(size=(2, 5, 9))
    assert np.allclose(spectra.singular_values(kernel), np.linalg.svd(kernel)[1])


def test_attention_by_distance_is_all_of_it(model: Llama, tokens: jax.Array) -> None:
    shares = changes.by_distance(model, tokens, [0, 1, 4, 20, 64])
    assert np.allclose(shares.sum(-1), 1, atol=1e-5)
    _, own = walk(model, tokens, lambda layer: jnp.diagonal(layer.a_BHTS, axis1=-2, axis2=-1)[..., 48:].mean((0, 2)))
    assert np.allclose(shares[..., 0], own, atol=1e-5)


def test_score_emerges_where_it_passes_half_of_what_is_above_chance() -> None:
    values = [[[0.1, 0.1]], [[0.2, 0.1]], [[0.35, 0.1]], [[0.5, 0.05]]]
    assert _emergence(values, [0, 8, 64, 512], 0.1) == [[64, -1]]


@pytest.mark.parametrize(
    "changed",
    [
        {"qk_norm": True},
        {"rope_scaling": "yarn", "rope_factor": 2.0, "rope_original_context": 32},
        {"head_dim": 32, "attention_bias": True, "mlp_bias": True},
    ],
    ids=str,
)
def test_walk_is_the_model_in_every_form(changed: dict[str, object], tokens: jax.Array) -> None:
    network = shaken(**changed)
    last, _ = walk(network, tokens, lambda _: None)
    expected = network(tokens)
    assert jnp.abs(network.logits(network.norm(last)) - expected).max() < 1e-4 * jnp.abs(expected).max()


def test_copying_is_that_of_the_complete_circuit() -> None:
    """Each head's V × V circuit written out, its norms folded in by hand, in groups of two query heads."""
    network = shaken(vocab_size=48)
    attention, size = network.layers.attention, network.config.head_dim
    for layer in range(2):
        for head in range(4):
            value = np.asarray(attention.value.kernel[...][layer]).reshape(64, 2, size)[:, head // 2]
            out = np.asarray(attention.out.kernel[...][layer]).reshape(4, size, 64)[head]
            scaled = np.asarray(network.embedding[...]) * np.asarray(network.layers.attention_norm.scale[...][layer])
            circuit = scaled @ value @ out @ (np.asarray(network.head_VD) * np.asarray(network.norm.scale[...])).T
            eigenvalues = np.linalg.eigvals(circuit.astype(np.float64))
            expected = eigenvalues.real.sum() / np.abs(eigenvalues).sum()
            assert copying(network)[layer, head] == pytest.approx(expected, abs=0.02), (layer, head)


def test_writes_are_logits_of_the_attended_tokens() -> None:
    """Against one head's output taken apart, source by source, with the last norm's actual scale."""
    network = shaken(vocab_size=48)
    row = jax.random.randint(jax.random.key(2), (1, 12), 0, 48)
    seen = compiled(score)(network, Probe(row, row)).scores.writes
    last, (a, v) = walk(network, row, lambda layer: (layer.a_BHTS[0], layer.v_BTKA[0]))
    root = 1 / np.sqrt(np.mean(np.asarray(last[0]) ** 2, axis=-1) + network.norm.epsilon)
    direction = np.asarray(network.head_VD * network.norm.scale[...])
    direction = direction - direction.mean(0)
    for layer in range(2):
        out = np.asarray(network.layers.attention.out.kernel[...][layer]).reshape(4, 16, 64)
        for head in range(4):
            added = np.einsum("ts,sd->tsd", a[layer, head], np.asarray(v[layer, :, head // 2]) @ out[head])
            total = np.einsum("tsd,sd,t->t", added, direction[np.asarray(row[0])], root).mean()
            assert seen[layer, head] == pytest.approx(total, rel=1e-3, abs=1e-4), (layer, head)
