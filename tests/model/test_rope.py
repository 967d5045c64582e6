import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.config import LlamaConfig
from model.rope import angles, attention_scale, frequencies, rotate
from model.stretch import ntk_theta

SHAPE = {
    "vocab_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "intermediate_size": 8,
    "max_position_embeddings": 128,
}


def of_size(size: int, theta: float = 10000.0, **scaling: object) -> jax.Array:
    return frequencies(LlamaConfig(**SHAPE, hidden_size=size, rope_theta=theta, **scaling))  # type: ignore[arg-type]


def test_query_key_products_depend_on_the_distance_alone() -> None:
    """q at position m times k at position n is unchanged when both positions are shifted."""
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 32))

    def product(m: int, n: int) -> float:
        at = [angles(jnp.array([[position]]), of_size(32)) for position in (m, n)]
        return float((rotate(q, at[0]) * rotate(k, at[1])).sum())

    assert product(7, 3) == pytest.approx(product(107, 103), abs=1e-4)
    assert abs(product(7, 3) - product(7, 4)) > 1e-3


def test_rotation_keeps_norms_and_leaves_position_zero() -> None:
    x = jax.random.normal(jax.random.key(0), (2, 9, 3, 16))
    rotated = rotate(x, angles(jnp.arange(9)[None], of_size(16)))
    np.testing.assert_allclose(jnp.linalg.norm(rotated, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)
    np.testing.assert_array_equal(rotated[:, 0], x[:, 0])


def test_ntk_base_for_twice_the_context_halves_the_slowest_frequency() -> None:
    theta = ntk_theta(10000.0, 2, 64)
    assert theta == pytest.approx(20452.2, abs=0.1)
    slowest = [of_size(64, base)[-1] for base in (10000.0, theta)]
    assert float(slowest[0] / slowest[1]) == pytest.approx(2, rel=1e-4)
    assert ntk_theta(10000.0, 1, 64) == 10000.0


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_scaled_frequencies_equal_those_of_transformers(kind: str) -> None:
    from transformers import LlamaConfig as Theirs
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {"rope_scaling": kind, "rope_factor": 4.0, "rope_original_context": 128}
    parameters = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
    config = Theirs(hidden_size=64, num_attention_heads=1, max_position_embeddings=512, rope_parameters=parameters)
    theirs, scale = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    np.testing.assert_allclose(of_size(64, **scaling), theirs.numpy(), rtol=1e-6)
    ours = LlamaConfig(**SHAPE, hidden_size=64, **scaling)  # type: ignore[arg-type]
    assert attention_scale(ours) == pytest.approx(scale)
