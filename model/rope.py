"""Rotary position embeddings (Su et al. 2021, arXiv:2104.09864), and how they are scaled to a longer context.

Letters in names: B batch, T time, H heads, A head size, P rotary pairs (A / 2).
"""

import math

import jax
import jax.numpy as jnp

from model.config import LlamaConfig

# YaRN's bounds, in turns over the old context: a pair that makes more turns than the first keeps its frequency, one
# that makes fewer than the second is interpolated fully (Peng et al. 2023, arXiv:2309.00071, section 3.2).
TURNS_KEPT, TURNS_INTERPOLATED = 32, 1


def frequencies(config: LlamaConfig) -> jax.Array:
    """The angle by which each pair of a head's components turns per position: `[head_dim / 2]`, radians, float32.

    Pair i turns with frequency theta^(-2i / head_dim). `linear` scaling (position interpolation, Chen et al. 2023,
    arXiv:2306.15595) makes all pairs turn `rope_factor` times slower. `yarn` scaling does so for the slow pairs, and so
    does `llama3` (`apply_scaling` in Meta's llama-models), by the turns that a pair makes.
    """
    size, theta = config.head_dim, config.rope_theta
    plain_P = theta ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    if config.rope_scaling == "none":
        return plain_P
    if config.rope_scaling == "linear":
        return plain_P / config.rope_factor
    if config.rope_scaling == "llama3":
        turns_P = plain_P * config.rope_original_context / (2 * math.pi)
        low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
        kept_P = jnp.clip((turns_P - low) / (high - low), 0, 1)
        return plain_P * kept_P + plain_P / config.rope_factor * (1 - kept_P)

    def pair(turns: float) -> float:
        """Index of the pair that makes so many turns over the old context."""
        return size * math.log(config.rope_original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = max(math.floor(pair(TURNS_KEPT)), 0), min(math.ceil(pair(TURNS_INTERPOLATED)), size - 1)
    ramp_P = jnp.clip((jnp.arange(size // 2) - low) / max(high - low, 0.001), 0, 1)
    return plain_P * (1 - ramp_P) + plain_P / config.rope_factor * ramp_P


def attention_scale(config: LlamaConfig) -> float:
    """The factor on queries and keys: YaRN's 0.1 ln(s) + 1, which sharpens attention over more positions; 1 else."""
    return 0.1 * math.log(config.rope_factor) + 1 if config.rope_scaling == "yarn" else 1.0


def angles(positions_BT: jax.Array, frequencies_P: jax.Array) -> jax.Array:
    """The angle of each pair at each position: `[batch, time, head_dim / 2]`, in radians, float32."""
    return positions_BT[..., None].astype(jnp.float32) * frequencies_P


def rotate(x_BTHA: jax.Array, angles_BTP: jax.Array, scale: float = 1.0) -> jax.Array:
    """Rotate each head by its position's angles and multiply it by `scale`.

    Takes and returns `[batch, time, heads, head_dim]`, in one type; the rotation is computed in float32. Pairs are
    (i, i + A/2), the layout of transformers' Llama.
    """
    cos, sin = scale * jnp.cos(angles_BTP)[:, :, None, :], scale * jnp.sin(angles_BTP)[:, :, None, :]
    first, second = jnp.split(x_BTHA.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTHA.dtype)
