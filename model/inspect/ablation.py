"""What each head is worth: the loss when its output is replaced by its mean, so that it carries no information.

Letters in names: B batch, T time, H query heads, A head size, L layers.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from model.inspect.walk import compiled, next_token_losses, walk
from model.llama import Llama


def ablations(model: Llama, tokens_BT: jax.Array) -> np.ndarray:
    """How much the mean loss rises without each head, `[layers, heads]`, in nats.

    In the place of a head's output is its mean over all positions of these rows (Wang et al. 2022, arXiv:2211.00593).
    """

    @compiled
    def loss(model: Llama, layer: jax.Array, head: jax.Array) -> jax.Array:
        last_BTD, _ = walk(model, tokens_BT, lambda _: None, partial(_without, layer, head))
        return next_token_losses(model, last_BTD, tokens_BT).mean()

    intact = loss(model, jnp.int32(-1), jnp.int32(0))
    layers, heads = range(model.config.num_hidden_layers), range(model.config.num_attention_heads)
    return np.array([[float(loss(model, jnp.int32(n), jnp.int32(h)) - intact) for h in heads] for n in layers])


def _without(layer: jax.Array, head: jax.Array, number: jax.Array, z_BTHA: jax.Array) -> jax.Array:
    """The outputs of layer `number`; where it is `layer`, with the mean in the place of one head's."""
    is_head_H = (jnp.arange(z_BTHA.shape[2]) == head) & (number == layer)
    return jnp.where(is_head_H[:, None], z_BTHA.mean((0, 1)), z_BTHA)
