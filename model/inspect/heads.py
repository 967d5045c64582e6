"""What each head does: scores of its attention on two texts, each with the level that chance gives it.

The texts: rows of held-out text, and rows of random tokens, `r₁ … rₙ r₁ … rₙ`, where only a head that looks back to an
earlier occurrence can predict the second half. Definitions: Olsson et al. 2022 (In-context Learning and Induction
Heads), Elhage et al. 2021 (A Mathematical Framework for Transformer Circuits), Gu et al. 2024 (sinks;
arXiv:2410.10781), as TransformerLens computes them.

Letters in names: B batch, T time, S time of the keys, D model width, H query heads, K key/value heads, A head size,
L layers, V vocabulary, N tokens of a repeated text.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from model.inspect.walk import Layer, last_root, next_token_losses, out_matrix, unembedding, walk
from model.llama import Llama

COMMONEST = 500  # random texts are drawn from so many of the commonest tokens: others were hardly ever trained
FIRST = 4  # positions at a row's start that the sink's share is not measured at: there is little else to attend to


class Probe(NamedTuple):
    """The texts that heads are scored on."""

    text_BT: jax.Array
    repeated_BT: jax.Array  # an even number of tokens: each row is its first half twice


class HeadScores(NamedTuple):
    """A number for each head, `[layers, heads]`, between 0 and 1 but for `writes`."""

    induction: jax.Array  # attention to the token after the earlier occurrence of the current one
    previous: jax.Array  # attention to the token before
    duplicate: jax.Array  # attention to earlier occurrences of the current token
    sink: jax.Array  # attention to the first position
    entropy: jax.Array  # of attention, over that of uniform attention
    writes: jax.Array  # what a head adds to the logits of the tokens it attends to, above the mean of all; nats


class Heads(NamedTuple):
    """A model on a probe."""

    scores: HeadScores
    norms: jax.Array  # root mean square of the stream at each layer's input and after the last, `[layers + 1]`
    losses: jax.Array  # of the text's tokens but the first of each row, `[batch, time - 1]`, nats
    first_losses: jax.Array  # mean loss of the random text's first half, nats
    second_losses: jax.Array  # of its second half: what looking back is worth


def probe(text_BT: jax.Array, counts_V: np.ndarray, rows: int, seed: int = 0) -> Probe:
    """`counts_V`: how often each token occurs in the training text."""
    return Probe(text_BT, repeated(counts_V, rows, text_BT.shape[1] // 2, seed))


def repeated(counts_V: np.ndarray, rows: int, period: int, seed: int = 0) -> jax.Array:
    """Rows of `period` random tokens twice, `[rows, 2 · period]`, of the commonest by these counts."""
    common = np.argsort(-counts_V, kind="stable")[: min(COMMONEST, int((counts_V > 0).sum()))]
    drawn = np.random.default_rng(seed).choice(common, (rows, period))
    return jnp.concatenate([drawn, drawn], axis=1)


def score(model: Llama, texts: Probe) -> Heads:
    """Both texts through the model; called under `jax.jit`."""
    centred_VD = unembedding(model) - unembedding(model).mean(0)  # what raises a logit above the mean of all

    def on_text(layer: Layer) -> tuple[jax.Array, ...]:
        return (*_on_text(layer.a_BHTS, texts.text_BT), jnp.sqrt(jnp.mean(layer.x_BTD**2)))

    def on_repeated(layer: Layer) -> tuple[jax.Array, jax.Array]:
        return induction(layer.a_BHTS), _writes(layer, texts.repeated_BT, centred_VD)

    last_BTD, (previous, duplicate, sink, entropy, norms) = walk(model, texts.text_BT, on_text)
    repeated_BTD, (inductions, writes_LBHT) = walk(model, texts.repeated_BT, on_repeated)
    writes = (writes_LBHT * last_root(model, repeated_BTD)[:, None]).mean((1, 3))
    losses_BN = next_token_losses(model, repeated_BTD, texts.repeated_BT)
    half = texts.repeated_BT.shape[1] // 2
    return Heads(
        HeadScores(inductions, previous, duplicate, sink, entropy, writes),
        jnp.append(norms, jnp.sqrt(jnp.mean(last_BTD**2))),
        next_token_losses(model, last_BTD, texts.text_BT),
        losses_BN[:, : half - 1].mean(),
        losses_BN[:, half:].mean(),  # its own first token cannot be known from the first half
    )


def induction(a_BHTS: jax.Array, period: int = 0) -> jax.Array:
    """Mean attention of position t of a repeated text to t − n + 1, the token after the earlier occurrence: `[heads]`.

    `period`: n, where the second copy is not whole; 0: half the row.
    """
    length = a_BHTS.shape[-1]
    period = period or length // 2
    t = jnp.arange(period, length - 1)
    return a_BHTS[:, :, t, t - period + 1].mean((0, 2))


def _on_text(a_BHTS: jax.Array, tokens_BT: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Previous token, duplicate token, sink and entropy, each `[heads]`."""
    time = a_BHTS.shape[-1]
    t = jnp.arange(1, time)
    previous = a_BHTS[:, :, t, t - 1].mean((0, 2))
    same_BTS = _earlier_same(tokens_BT)
    has_BT = same_BTS.any(-1)
    on_same_BHT = jnp.where(same_BTS[:, None], a_BHTS, 0).sum(-1)
    duplicate = jnp.where(has_BT[:, None], on_same_BHT, 0).sum((0, 2)) / jnp.maximum(has_BT.sum(), 1)
    sink = a_BHTS[:, :, FIRST:, 0].mean((0, 2))
    entropy_BHT = -jnp.where(a_BHTS > 0, a_BHTS * jnp.log(jnp.maximum(a_BHTS, 1e-30)), 0).sum(-1)
    entropy = (entropy_BHT[:, :, 1:] / jnp.log(1 + t)).mean((0, 2))
    return previous, duplicate, sink, entropy


def _earlier_same(tokens_BT: jax.Array) -> jax.Array:
    """`[batch, time, keys]` bool: an earlier position with the same token."""
    time = tokens_BT.shape[1]
    return (tokens_BT[:, :, None] == tokens_BT[:, None, :]) & jnp.tril(jnp.ones((time, time), bool), -1)


def _writes(layer: Layer, tokens_BT: jax.Array, centred_VD: jax.Array) -> jax.Array:
    """What a head adds, from the positions that it attends to, to the logits of the tokens there, before the last norm
    divides it: `[batch, heads, time]`."""
    out_HAD = out_matrix(layer.block)
    heads, kv_heads = out_HAD.shape[0], layer.v_BTKA.shape[2]
    out_KGAD = out_HAD.reshape(kv_heads, heads // kv_heads, *out_HAD.shape[1:])
    own_BSD = centred_VD[tokens_BT]
    wanted_BSKGA = jnp.einsum("bsd,kgad->bskga", own_BSD, out_KGAD)
    gain_BSH = jnp.einsum("bska,bskga->bskg", layer.v_BTKA, wanted_BSKGA).reshape(*tokens_BT.shape, heads)
    return jnp.einsum("bhts,bsh->bht", layer.a_BHTS, gain_BSH)


def chance(texts: Probe) -> dict[str, float]:
    """What uniform attention gives for each score; `writes` has 0."""
    time, half = texts.text_BT.shape[1], texts.repeated_BT.shape[1] // 2
    share = 1 / np.arange(1, time + 1)
    same = np.asarray(_earlier_same(texts.text_BT))
    has = same.any(-1)
    return {
        "induction": float((1 / np.arange(half + 1, 2 * half)).mean()),
        "previous": float(share[1:].mean()),
        "duplicate": float((same.sum(-1) * share)[has].mean()) if has.any() else 0.0,
        "sink": float(share[FIRST:].mean()),
        "entropy": 1.0,
        "writes": 0.0,
    }
