"""One text through the network: what the model would say if it stopped after each layer, and what decides its answer.

The logit lens (nostalgebraist 2020) reads the stream after each layer as if it were the last. Direct logit attribution
(Elhage et al. 2021) cuts the last logit into what each head and each feed-forward part added to it.

Letters in names: T time, S time of the keys, D model width, H query heads, A head size, L layers, V vocabulary, Y the
tokens whose logits are taken apart.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from model.inspect.walk import Layer, last_root, out_matrix, unembedding, walk
from model.llama import Llama

DRAWN = 128  # positions between which attention is kept


class Lens(NamedTuple):
    """The stream before the first layer and after each, read as if it were the last: `[layers + 1, time]`."""

    top: jax.Array  # the likeliest next token
    probability: jax.Array  # of it
    rank: jax.Array  # of the token that comes next in the text, 0 for the likeliest; of the last position 0
    logprob: jax.Array  # of that token, nats; of the last position 0
    divergence: jax.Array  # KL of the model's own prediction from this one, nats
    settles: jax.Array  # `[time]`: the first layer from which on the likeliest token is the final one


class Attribution(NamedTuple):
    """Logits of the token after the text, in parts that add up to them; `[…, tokens]`."""

    embedding: jax.Array  # `[tokens]`
    heads: jax.Array  # `[layers, heads, tokens]`
    biases: jax.Array  # `[layers, tokens]`: of the output matrices, 0 where there are none
    mlps: jax.Array  # `[layers, tokens]`

    def total(self) -> jax.Array:
        """The logits, `[tokens]`."""
        return self.embedding + self.heads.sum((0, 1)) + self.biases.sum(0) + self.mlps.sum(0)


class Reading(NamedTuple):
    """Everything about one text."""

    lens: Lens
    attention_LHTS: jax.Array  # among the last DRAWN positions
    logits_V: jax.Array  # of the token after the text


def read(model: Llama, tokens_T: jax.Array) -> Reading:
    """Read one text with the model; called under `jax.jit`."""
    last_BTD, (stream_LTD, attention_LHTS) = walk(
        model, tokens_T[None], lambda layer: (layer.x_BTD[0], layer.a_BHTS[0, :, -DRAWN:, -DRAWN:])
    )
    next_T = jnp.append(tokens_T[1:], tokens_T[-1])
    known_T = jnp.arange(len(tokens_T)) < len(tokens_T) - 1
    final_TV = jax.nn.log_softmax(model.logits(model.norm(last_BTD))[0])

    def through(x_TD: jax.Array) -> tuple[jax.Array, ...]:
        logp_TV = jax.nn.log_softmax(model.logits(model.norm(x_TD[None]))[0])
        own_T = jnp.take_along_axis(logp_TV, next_T[:, None], -1)[:, 0]
        rank_T = (logp_TV > own_T[:, None]).sum(-1)
        divergence_T = (jnp.exp(final_TV) * (final_TV - logp_TV)).sum(-1)
        top_T = logp_TV.argmax(-1)
        return top_T, jnp.exp(logp_TV.max(-1)), rank_T * known_T, own_T * known_T, divergence_T

    looks = jax.lax.map(through, jnp.concatenate([stream_LTD, last_BTD]))
    same_LT = looks[0] == looks[0][-1]
    settles_T = len(same_LT) - jnp.cumprod(same_LT[::-1], axis=0).sum(0)
    top_LT, probability_LT, rank_LT, logprob_LT, divergence_LT = looks
    view = Lens(top_LT, probability_LT, rank_LT, logprob_LT, divergence_LT, settles_T)
    return Reading(view, attention_LHTS, model.logits(model.norm(last_BTD[:, -1:]))[0, 0])


def attribute(model: Llama, tokens_T: jax.Array, of_Y: jax.Array) -> Attribution:
    """The logits of some tokens after the text, in parts: each part's share with the norm's actual scale held fixed."""

    def look(layer: Layer) -> tuple[jax.Array, jax.Array, jax.Array]:
        heads_HD = jnp.einsum("ha,had->hd", layer.z_BTHA[0, -1], out_matrix(layer.block))
        bias = layer.block.attention.out.bias
        return heads_HD, jnp.zeros_like(heads_HD[0]) if bias is None else bias[...], layer.mlp_BTD[0, -1]

    last_BTD, (heads_LHD, biases_LD, mlps_LD) = walk(model, tokens_T[None], look)
    direction_YD = unembedding(model)[of_Y] * last_root(model, last_BTD)[0, -1]
    parts = (model.embed(tokens_T[-1:])[0], heads_LHD, biases_LD, mlps_LD)
    return Attribution(*(part @ direction_YD.T for part in parts))
