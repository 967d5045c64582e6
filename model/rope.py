"""Rotary position embeddings (Su et al. 2021, arXiv:2104.09864), and their NTK-aware stretching."""

import jax
import jax.numpy as jnp


def angles(positions_BT: jax.Array, head_dim: int, theta: float) -> jax.Array:
    """The angle of each pair of a head's numbers at each position: `[batch, time, head_dim / 2]`, in radians, float32.

    Pair i turns with frequency theta^(-2i / head_dim).
    """
    frequencies_F = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    return positions_BT[..., None].astype(jnp.float32) * frequencies_F


def rotate(x_BTHA: jax.Array, angles_BTF: jax.Array) -> jax.Array:
    """Turn each head by its position's angles. Pairs are (i, i + A/2), the layout of transformers' Llama.

    The rotation is computed in float32 and returned in the type of `x_BTHA`, `[batch, time, heads, head_dim]`.
    """
    cos, sin = jnp.cos(angles_BTF)[:, :, None, :], jnp.sin(angles_BTF)[:, :, None, :]
    first, second = jnp.split(x_BTHA.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BTHA.dtype)


def ntk_theta(theta: float, factor: float, head_dim: int) -> float:
    """The base for a context `factor` times as long: θ · s^(d / (d - 2)).

    The fastest pair keeps its frequency and the slowest turns `factor` times slower, so that the far end of the new
    context looks like the far end of the old one (u/bloc97, "NTK-Aware Scaled RoPE", 2023; YaRN, arXiv:2309.00071).

    >>> round(ntk_theta(10000.0, 2, 64), 1)
    20452.2
    """
    return theta * factor ** (head_dim / (head_dim - 2))
