"""Causal grouped-query attention (Vaswani et al. 2017; Ainslie et al. 2023), in the form that each backend runs best.

Letters in names: B batch, T query time, S key time, H query heads, K key/value heads, G query heads per key/value
head, X queries of a group (G · T), A head size.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from model import sharding

# The scores of a whole row would fill memory, half of them above the diagonal. In blocks of so many queries, most of
# that half is never computed, and one block's scores are in memory at a time.
BLOCK, GPU_BLOCK = 64, 512
MASKED = -1e30  # finite, so that a row whose keys are all masked gives no NaN


class Segments(NamedTuple):
    """Which positions of a row belong together, `[batch, time]` integers: attention stays within a segment.

    Where `branches_BT` is set, branch 0 is a segment's prefix. Each other branch continues the prefix and cannot see
    its siblings.
    """

    segments_BT: jax.Array
    branches_BT: jax.Array | None = None

    def visible(self, queries: slice, keys: slice) -> jax.Array:
        """`[batch, queries, keys]` bool: the mask of segments and branches, without the causal mask."""
        mask_BTS = self.segments_BT[:, queries, None] == self.segments_BT[:, None, keys]
        if self.branches_BT is not None:
            branches_BS = self.branches_BT[:, None, keys]
            mask_BTS &= (branches_BS == 0) | (branches_BS == self.branches_BT[:, queries, None])
        return mask_BTS


def attend(q_BTHA: jax.Array, k_BTKA: jax.Array, v_BTKA: jax.Array, segments: Segments | None = None) -> jax.Array:
    """Each position attends to itself and to earlier ones; with `segments`, only within its segment and branch.

    Takes `[batch, time, heads, head_dim]` and returns the queries' shape and type. Scores and softmax are float32.
    """
    gpu, time, head_dim = sharding.platform() == "gpu", q_BTHA.shape[1], q_BTHA.shape[-1]
    half = q_BTHA.dtype in (jnp.bfloat16, jnp.float16)
    # cuDNN has kernels for heads of these sizes on every GPU that it supports, and with a mask for an even time.
    if gpu and half and head_dim <= 128 and head_dim % 8 == 0 and (segments is None or time % 2 == 0):
        q_BTHA, k_BTKA, v_BTKA = (sharding.shard_heads(x_BTXA) for x_BTXA in (q_BTHA, k_BTKA, v_BTKA))
        mask_B1TS = None if segments is None else segments.visible(slice(None), slice(None))[:, None]
        return jax.nn.dot_product_attention(
            q_BTHA, k_BTKA, v_BTKA, mask=mask_B1TS, is_causal=True, implementation="cudnn"
        )
    # A GPU has less memory and more compute than a CPU: its backward pass recomputes a block's scores.
    block, size = (jax.checkpoint(_block, static_argnums=(4, 5)), GPU_BLOCK) if gpu else (_block, BLOCK)
    return jnp.concatenate(
        [
            block(q_BTHA, k_BTKA, v_BTKA, segments, start, min(start + size, q_BTHA.shape[1]))
            for start in range(0, q_BTHA.shape[1], size)
        ],
        axis=1,
    )


def _block(
    q_BTHA: jax.Array, k_BTKA: jax.Array, v_BTKA: jax.Array, segments: Segments | None, start: int, stop: int
) -> jax.Array:
    """Attention of the queries `start … stop` over the keys that they may see."""
    causal_TS = jnp.arange(stop)[None, :] <= jnp.arange(start, stop)[:, None]
    mask_BTS = causal_TS[None]
    if segments is not None:
        mask_BTS = mask_BTS & segments.visible(slice(start, stop), slice(stop))
    return grouped_attention(q_BTHA[:, start:stop], k_BTKA[:, :stop], v_BTKA[:, :stop], mask_BTS)


def grouped_attention(q_BTHA: jax.Array, k_BSKA: jax.Array, v_BSKA: jax.Array, mask_BTS: jax.Array) -> jax.Array:
    """Attention under any mask (True: may see), `[batch, time, heads, head_dim]`.

    The query heads of a group are folded into the time axis, so that one matrix product serves the whole group.
    """
    b, t, h, a = q_BTHA.shape
    k = k_BSKA.shape[2]
    g = h // k
    q_BKXA = q_BTHA.reshape(b, t, k, g, a).transpose(0, 2, 3, 1, 4).reshape(b, k, g * t, a)
    scores_BKXS = jnp.einsum("bkxa,bska->bkxs", q_BKXA, k_BSKA, preferred_element_type=jnp.float32) * a**-0.5
    scores_BKGTS = scores_BKXS.reshape(b, k, g, t, -1)
    scores_BKGTS = jnp.where(mask_BTS[:, None, None], scores_BKGTS, MASKED)
    weights_BKXS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(q_BTHA.dtype).reshape(b, k, g * t, -1)
    y_BKXA = jnp.einsum("bkxs,bska->bkxa", weights_BKXS, v_BSKA)
    return y_BKXA.reshape(b, k, g, t, a).transpose(0, 3, 1, 2, 4).reshape(b, t, h, a)
