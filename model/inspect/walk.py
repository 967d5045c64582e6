"""One forward pass that shows every layer: what it read, what its heads attended to, and what it added.

Letters in names: B batch, T time, S time of the keys, D model width, H query heads, K key/value heads, A head size, L
layers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from model.llama import Block, Llama

Result = TypeVar("Result")


class Layer(NamedTuple):
    """A block at work."""

    block: Block
    x_BTD: jax.Array  # the residual stream that it reads
    v_BTKA: jax.Array  # the values of its key/value heads
    a_BHTS: jax.Array  # attention: how much each position takes of each earlier one
    z_BTHA: jax.Array  # each head's mixture of values, before the output matrix
    mlp_BTD: jax.Array  # what the feed-forward part adds


def walk(
    model: Llama,
    tokens_BT: jax.Array,
    look: Callable[[Layer], Any],
    change: Callable[[jax.Array, jax.Array], jax.Array] = lambda _, z_BTHA: z_BTHA,
) -> tuple[jax.Array, Any]:
    """The stream after the last layer, `[batch, time, d_model]`, and what `look` returns of each layer, stacked.

    `change(layer, z_BTHA)` may put other head outputs in place of a layer's own. One layer is in memory at a time, and
    of it only what `look` returns is kept.
    """
    graph, stacked_L = nnx.split(model.layers)
    angles_BTP = model.angles(jnp.arange(tokens_BT.shape[1])[None])
    causal_TS = jnp.tril(jnp.ones((tokens_BT.shape[1],) * 2, bool))

    def step(x_BTD: jax.Array, item: tuple[jax.Array, nnx.State]) -> tuple[jax.Array, Any]:
        number, state = item
        block: Block = nnx.merge(graph, state)
        q_BTHA, k_BTKA, v_BTKA = block.attention.project(block.attention_norm(x_BTD), angles_BTP)
        groups = q_BTHA.shape[2] // k_BTKA.shape[2]
        k_BTHA, v_BTHA = (jnp.repeat(x_BTKA, groups, axis=2) for x_BTKA in (k_BTKA, v_BTKA))
        scores_BHTS = jnp.einsum("btha,bsha->bhts", q_BTHA, k_BTHA) * q_BTHA.shape[-1] ** -0.5
        a_BHTS = jax.nn.softmax(jnp.where(causal_TS, scores_BHTS, -jnp.inf), axis=-1)
        z_BTHA = change(number, jnp.einsum("bhts,bsha->btha", a_BHTS, v_BTHA))
        middle_BTD = x_BTD + block.attention.out(z_BTHA.reshape(*x_BTD.shape[:2], -1))
        mlp_BTD = block.mlp(block.mlp_norm(middle_BTD))
        return middle_BTD + mlp_BTD, look(Layer(block, x_BTD, v_BTKA, a_BHTS, z_BTHA, mlp_BTD))

    numbers_L = jnp.arange(model.config.num_hidden_layers)
    return jax.lax.scan(step, model.embed(tokens_BT), (numbers_L, stacked_L))


def compiled(function: Callable[..., Result]) -> Callable[..., Result]:
    """`function(model, …)` under `jax.jit`, compiled once for all models of one shape."""
    jitted = jax.jit(lambda graph, state, *more: function(nnx.merge(graph, state), *more), static_argnums=0)
    return lambda model, *more: jitted(*nnx.split(model), *more)


def next_token_losses(model: Llama, x_BTD: jax.Array, tokens_BT: jax.Array) -> jax.Array:
    """Loss of each token but the first, from the stream after the last layer: `[batch, time - 1]`, nats."""
    logits_BTV = model.logits(model.norm(x_BTD[:, :-1]))
    target_BT = jnp.take_along_axis(logits_BTV, tokens_BT[:, 1:, None], -1)[..., 0]
    return jax.nn.logsumexp(logits_BTV, -1) - target_BT


def out_matrix(block: Block) -> jax.Array:
    """The output matrix by heads, `[heads, head_dim, d_model]`."""
    kernel_ID = block.attention.out.kernel[...]
    return kernel_ID.reshape(-1, block.attention.head_dim, kernel_ID.shape[-1])


def unembedding(model: Llama) -> jax.Array:
    """The direction of the stream that raises each token's logit, the last norm's scale folded in:
    `[vocabulary, d_model]`."""
    return model.head_VD * model.norm.scale[...]


def last_root(model: Llama, x_BTD: jax.Array) -> jax.Array:
    """The factor that the last norm multiplies each position of the stream by, before its scale: `[batch, time]`."""
    return jax.lax.rsqrt(jnp.mean(x_BTD**2, axis=-1) + model.norm.epsilon)
