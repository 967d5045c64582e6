"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): momentum, made orthogonal for each matrix.

The moments are float32. The iteration runs in the type that the network computes in, and its work is shared out: each
device takes some layers of a stack, so that nothing crosses the wire between its products.

Letters in names: L layers, I inputs, O outputs; M the smaller and N the larger of the two.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from model import sharding

MOMENTUM = 0.95
ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the iteration, chosen for its slope at zero (Jordan et al. 2024)
EPSILON = 1e-8


class MuonState(NamedTuple):
    """How many updates there were, and the mean of their gradients."""

    updates: jax.Array
    momentum: Any


def scale_by_muon(dtype: str) -> optax.GradientTransformation:
    """Gradients of stacked matrices, `[layers, inputs, outputs]` → their orthogonalized Nesterov momentum.

    `dtype`: what the iteration computes in. Singular values of the result are near 1.
    """

    def init(params: Any) -> MuonState:
        return MuonState(jnp.int32(0), optax.tree.zeros_like(params))

    def update(grads: Any, state: MuonState, params: Any = None) -> tuple[Any, MuonState]:
        count = optax.safe_increment(state.updates)
        momentum = optax.tree.update_moment(grads, state.momentum, MOMENTUM, 1)
        ahead = jax.tree.map(
            lambda m, g: MOMENTUM * m + (1 - MOMENTUM) * g,
            optax.tree.bias_correction(momentum, MOMENTUM, optax.safe_increment(count)),
            optax.tree.bias_correction(grads, MOMENTUM, count),
        )

        def shared(path: tuple, m_LIO: jax.Array) -> jax.Array:
            # In `dtype` before and after it crosses the wire, and whole layers on both sides of the iteration.
            x_LIO = sharding.shard_layers(sharding.shard_as(path, m_LIO.astype(dtype)))
            return sharding.shard_as(path, sharding.shard_layers(orthogonalize(x_LIO))).astype(m_LIO.dtype)

        return jax.tree.map_with_path(shared, ahead), MuonState(count, momentum)

    return optax.GradientTransformation(init, update)


def scale_by_width(rms: float) -> optax.GradientTransformation:
    """Orthogonal updates → updates whose root mean square is `rms`, whatever the matrix's shape (Liu et al. 2025)."""

    def scale(m_LIO: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.float32(max(m_LIO.shape[1:]))) * rms * m_LIO

    return optax.stateless(lambda updates, _: jax.tree.map(scale, updates))


@jax.vmap
def orthogonalize(m_IO: jax.Array) -> jax.Array:
    """The nearest orthogonal matrix to each of a stack, roughly, by Newton–Schulz iterations in the stack's type."""
    wide = m_IO.shape[0] <= m_IO.shape[1]
    x_MN = m_IO if wide else m_IO.T
    norm = jnp.linalg.norm(x_MN.astype(jnp.float32))
    x_MN = (x_MN / (norm + EPSILON)).astype(m_IO.dtype)
    a, b, c = COEFFICIENTS

    def iterate(_: int, x_MN: jax.Array) -> jax.Array:
        gram_MM = x_MN @ x_MN.T
        polynomial_MM = b * gram_MM + c * gram_MM @ gram_MM
        return a * x_MN + polynomial_MM @ x_MN

    # As a loop: unrolled, XLA keeps all iterations' products of all stacks at once. On a CPU, which computes in
    # float32, the loop would keep it from folding the transpositions into the products.
    x_MN = jax.lax.fori_loop(0, ITERATIONS, iterate, x_MN, unroll=x_MN.dtype == jnp.float32)
    return x_MN if wide else x_MN.T
