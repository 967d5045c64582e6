"""Cross-entropy that never has tokens × vocabulary in memory.

Letters in names: C chunk, B batch, T time, D model width, V vocabulary, W the
vocabulary as it is computed.
"""

from functools import partial

import jax
import jax.numpy as jnp

from model import sharding
from model.attention import MASKED

ALIGNED = 128
CHUNK = 4096  # tokens whose logits are in memory at once


def cross_entropy(
    x_BTD: jax.Array, head_VD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array, z_loss: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Weighted sum of -log p(target) in nats, and the same with `z_loss` · log²(Z) added (PaLM, arXiv:2204.02311).

    Only the second carries a gradient. It is computed in the forward pass, while a chunk's logits are at hand, so
    that the backward pass neither keeps them nor computes them again.
    """
    b, t, _ = x_BTD.shape
    chunks = min(t, max(1, -(-b * t // CHUNK)))
    while t % chunks:
        chunks += 1
    # Cut along time: the batch axis may be spread over devices.
    split = [a.reshape(b, chunks, t // chunks, *a.shape[2:]).swapaxes(0, 1) for a in (x_BTD, targets_BT, weights_BT)]
    return _sum(*split, head_VD, z_loss)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _sum(
    x_CBTD: jax.Array, targets_CBT: jax.Array, weights_CBT: jax.Array, head_VD: jax.Array, z_loss: float
) -> tuple[jax.Array, jax.Array]:
    head_WD, vocabulary = _computed(head_VD, x_CBTD.dtype), head_VD.shape[0]

    def chunk(total: tuple, piece: tuple) -> tuple[tuple, None]:
        x_BTD, targets_BT, weights_BT = piece
        logits_BTW = _logits(x_BTD, head_WD, vocabulary)
        loss_BT, log_z_BT = _losses(logits_BTW, targets_BT)
        return _add(total, loss_BT, log_z_BT, weights_BT, z_loss), None

    return jax.lax.scan(chunk, (jnp.zeros(()), jnp.zeros(())), (x_CBTD, targets_CBT, weights_CBT))[0]


def _forward(
    x_CBTD: jax.Array, targets_CBT: jax.Array, weights_CBT: jax.Array, head_VD: jax.Array, z_loss: float
) -> tuple[tuple, tuple]:
    vocabulary = head_VD.shape[0]

    def gradients(
        x_CBTD: jax.Array, targets_CBT: jax.Array, weights_CBT: jax.Array, head_WD: jax.Array
    ) -> tuple[tuple, jax.Array]:
        def chunk(carry: tuple, piece: tuple) -> tuple[tuple, jax.Array]:
            total, dhead_DW = carry
            x_BTD, targets_BT, weights_BT = piece
            logits_BTW = _logits(x_BTD, head_WD, vocabulary)
            loss_BT, log_z_BT = _losses(logits_BTW, targets_BT)
            slope_BT1 = (1 + 2 * z_loss * log_z_BT)[..., None]
            right_BTW = targets_BT[..., None] == jnp.arange(logits_BTW.shape[-1])
            dlogits_BTW = jnp.exp(logits_BTW - log_z_BT[..., None]) * slope_BT1 - right_BTW
            dlogits_BTW = (dlogits_BTW * weights_BT[..., None]).astype(x_BTD.dtype)
            # As D × W: XLA writes the smaller of the two, x, the other way round for it. As W × D it is the logits.
            dhead_DW += jnp.einsum("btd,btw->dw", x_BTD, dlogits_BTW, preferred_element_type=jnp.float32)
            dx_BTD = jnp.einsum("btw,wd->btd", dlogits_BTW, head_WD)
            return (_add(total, loss_BT, log_z_BT, weights_BT, z_loss), dhead_DW), dx_BTD

        zero = (jnp.zeros(()), jnp.zeros(())), jnp.zeros(head_WD.shape[::-1], jnp.float32)
        return jax.lax.scan(chunk, zero, (x_CBTD, targets_CBT, weights_CBT))

    # Each device over its own rows, with the whole head: it is gathered once, and its gradient summed once, not in
    # each chunk.
    over_rows = sharding.map_rows(gradients, by_rows=3)
    (total, dhead_DW), dx_CBTD = over_rows(x_CBTD, targets_CBT, weights_CBT, _computed(head_VD, x_CBTD.dtype))
    return total, (dx_CBTD, dhead_DW[:, :vocabulary].T.astype(head_VD.dtype))


def _backward(z_loss: float, saved: tuple, cotangents: tuple) -> tuple:
    (dx_CBTD, dhead_VD), scale = saved, cotangents[1]
    return dx_CBTD * scale.astype(dx_CBTD.dtype), None, None, dhead_VD * scale


_sum.defvjp(_forward, _backward)


def _computed(head_VD: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """The head in the type that it is computed in, with rows of zeros up to the next size that tensor cores take whole:
    GPT-2's vocabulary, 50257, is odd."""
    more = -head_VD.shape[0] % ALIGNED if jnp.dtype(dtype).itemsize == 2 else 0
    return jnp.pad(head_VD.astype(dtype), ((0, more), (0, 0)))


def _logits(x_BTD: jax.Array, head_WD: jax.Array, vocabulary: int) -> jax.Array:
    logits_BTW = jnp.einsum("btd,wd->btw", x_BTD, head_WD, preferred_element_type=jnp.float32)
    return jnp.where(jnp.arange(head_WD.shape[0]) < vocabulary, logits_BTW, MASKED)


def _losses(logits_BTW: jax.Array, targets_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    log_z_BT = jax.nn.logsumexp(logits_BTW, axis=-1)
    return log_z_BT - jnp.take_along_axis(logits_BTW, targets_BT[..., None], axis=-1)[..., 0], log_z_BT


def _add(
    total: tuple, loss_BT: jax.Array, log_z_BT: jax.Array, weights_BT: jax.Array, z_loss: float
) -> tuple[jax.Array, jax.Array]:
    plain, trained = total
    loss = (loss_BT * weights_BT).sum()
    return plain + loss, trained + loss + (z_loss * log_z_BT**2 * weights_BT).sum()
