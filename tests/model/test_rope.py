import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.rope import angles, ntk_theta, rotate


def test_products_depend_on_the_distance_alone() -> None:
    """q at position m times k at position n is the same wherever the pair stands."""
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 32))

    def product(m: int, n: int) -> float:
        at = [angles(jnp.array([[position]]), 32, 10000.0) for position in (m, n)]
        return float((rotate(q, at[0]) * rotate(k, at[1])).sum())

    assert product(7, 3) == pytest.approx(product(107, 103), abs=1e-4)
    assert abs(product(7, 3) - product(7, 4)) > 1e-3


def test_rotation_keeps_lengths_and_leaves_position_zero() -> None:
    x = jax.random.normal(jax.random.key(0), (2, 9, 3, 16))
    turned = rotate(x, angles(jnp.arange(9)[None], 16, 10000.0))
    np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)
    np.testing.assert_array_equal(turned[:, 0], x[:, 0])


def test_ntk_base() -> None:
    """The base for twice the context at head size 64, and what it is made for: the slowest pair turns half as fast."""
    theta = ntk_theta(10000.0, 2, 64)
    assert theta == pytest.approx(20452.2, abs=0.1)
    slowest = [angles(jnp.array([[1]]), 64, base)[0, 0, -1] for base in (10000.0, theta)]
    assert float(slowest[0] / slowest[1]) == pytest.approx(2, rel=1e-4)
    assert ntk_theta(10000.0, 1, 64) == 10000.0
