"""Cross-entropy that never has tokens × vocabulary in memory.

Letters in names: C chunk, B batch, T time, D model width, V vocabulary.
"""

from functools import partial

import jax
import jax.numpy as jnp

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
    def chunk(total: tuple, piece: tuple) -> tuple[tuple, None]:
        x_BTD, targets_BT, weights_BT = piece
        logits_BTV = _logits(x_BTD, head_VD)
        loss_BT, log_z_BT = _losses(logits_BTV, targets_BT)
        return _add(total, loss_BT, log_z_BT, weights_BT, z_loss), None

    return jax.lax.scan(chunk, (jnp.zeros(()), jnp.zeros(())), (x_CBTD, targets_CBT, weights_CBT))[0]


def _forward(
    x_CBTD: jax.Array, targets_CBT: jax.Array, weights_CBT: jax.Array, head_VD: jax.Array, z_loss: float
) -> tuple[tuple, tuple]:
    def chunk(carry: tuple, piece: tuple) -> tuple[tuple, jax.Array]:
        total, dhead_DV = carry
        x_BTD, targets_BT, weights_BT = piece
        logits_BTV = _logits(x_BTD, head_VD)
        loss_BT, log_z_BT = _losses(logits_BTV, targets_BT)
        slope_BT1 = (1 + 2 * z_loss * log_z_BT)[..., None]
        right_BTV = targets_BT[..., None] == jnp.arange(logits_BTV.shape[-1])
        dlogits_BTV = jnp.exp(logits_BTV - log_z_BT[..., None]) * slope_BT1 - right_BTV
        dlogits_BTV = (dlogits_BTV * weights_BT[..., None]).astype(x_BTD.dtype)
        # As D × V: XLA writes the smaller of the two, x, the other way round for it. As V × D it is the logits.
        dhead_DV += jnp.einsum("btd,btv->dv", x_BTD, dlogits_BTV, preferred_element_type=jnp.float32)
        dx_BTD = jnp.einsum("btv,vd->btd", dlogits_BTV, head_VD.astype(x_BTD.dtype))
        return (_add(total, loss_BT, log_z_BT, weights_BT, z_loss), dhead_DV), dx_BTD

    zero = (jnp.zeros(()), jnp.zeros(()))
    (total, dhead_DV), dx_CBTD = jax.lax.scan(
        chunk, (zero, jnp.zeros(head_VD.shape[::-1], jnp.float32)), (x_CBTD, targets_CBT, weights_CBT)
    )
    return total, (dx_CBTD, dhead_DV.T.astype(head_VD.dtype))


def _backward(z_loss: float, saved: tuple, cotangents: tuple) -> tuple:
    (dx_CBTD, dhead_VD), scale = saved, cotangents[1]
    return dx_CBTD * scale.astype(dx_CBTD.dtype), None, None, dhead_VD * scale


_sum.defvjp(_forward, _backward)


def _logits(x_BTD: jax.Array, head_VD: jax.Array) -> jax.Array:
    return jnp.einsum("btd,vd->btv", x_BTD, head_VD.astype(x_BTD.dtype), preferred_element_type=jnp.float32)


def _losses(logits_BTV: jax.Array, targets_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    return log_z_BT - jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0], log_z_BT


def _add(
    total: tuple, loss_BT: jax.Array, log_z_BT: jax.Array, weights_BT: jax.Array, z_loss: float
) -> tuple[jax.Array, jax.Array]:
    plain, trained = total
    loss = (loss_BT * weights_BT).sum()
    return plain + loss, trained + loss + (z_loss * log_z_BT**2 * weights_BT).sum()
