"""What fine-tuning and the longer context changed, matrix by matrix, token by token, and by distance.

Letters in names: B batch, T time, S time of the keys, H query heads, L layers, I inputs, O outputs, M the smaller of
the two, P rotary pairs, V vocabulary.
"""

from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from model.config import LlamaConfig
from model.inspect import spectra
from model.inspect.heads import induction
from model.inspect.walk import Layer, compiled, walk
from model.llama import Llama
from model.rope import frequencies

SHOWN = 16  # singular values of an update, and directions that are looked for in the matrix before it
NEW = 0.6  # the largest cosine of a direction that is new (Shuttleworth et al. 2024, arXiv:2410.21228)


class MatrixChange(NamedTuple):
    """An update of one matrix in one layer."""

    values: list[float]  # its largest singular values, over the largest of the matrix before
    effective_rank: float
    new_directions: int  # of the matrix's first SHOWN left directions after it, those that it did not have before


class TokenChange(NamedTuple):
    """Two models on one text, `[time]`; the last position predicts the token after it."""

    divergence: jax.Array  # KL of the second model from the first, nats
    same_top: jax.Array  # bool: the likeliest next token is the same


def updates(before: Llama, after: Llama) -> dict[str, list[MatrixChange]]:
    """The change of each matrix, in the layers that are looked at."""
    old, new = (
        {name: np.asarray(kernel, np.float64) for name, kernel in spectra.matrices(model)} for model in (before, after)
    )
    return {name: [_update(*pair) for pair in zip(old[name], new[name], strict=True)] for name in old}


def _update(old_IO: np.ndarray, new_IO: np.ndarray) -> MatrixChange:
    if old_IO.shape[0] > old_IO.shape[1]:  # directions of the smaller side, which are the faster to find
        old_IO, new_IO = old_IO.T, new_IO.T
    values_M = spectra.singular_values((new_IO - old_IO)[None])[0]
    if not values_M[0]:
        return MatrixChange([0.0] * SHOWN, 0.0, 0)
    # Its directions are the eigenvectors of W · Wᵀ, the largest last.
    old_II, new_II = (np.linalg.eigh(w_IO @ w_IO.T) for w_IO in (old_IO, new_IO))
    largest = float(np.sqrt(old_II[0][-1]))
    cosines = np.abs(new_II[1][:, -SHOWN:].T @ old_II[1]).max(-1)
    return MatrixChange(
        [float(value) / largest for value in values_M[:SHOWN]],
        float(spectra.effective_rank(values_M[None])[0]),
        int((cosines < NEW).sum()),
    )


def compare(first: Llama, second: Llama, tokens_T: np.ndarray) -> TokenChange:
    """Both models' predictions after each token of a text."""
    q_TV, p_TV = (jax.nn.log_softmax(model(jnp.asarray(tokens_T)[None])[0]) for model in (first, second))
    return TokenChange((jnp.exp(p_TV) * (p_TV - q_TV)).sum(-1), p_TV.argmax(-1) == q_TV.argmax(-1))


def wavelengths(config: LlamaConfig) -> list[float]:
    """Positions in a full turn of each rotary pair, the fastest first."""
    return [float(2 * np.pi / frequency) for frequency in np.asarray(frequencies(config))]


def by_distance(model: Llama, tokens_BT: jax.Array, edges: list[int]) -> np.ndarray:
    """Mean share of a position's attention that goes to each range of distances, `[layers, heads, ranges]`.

    `edges` cut the distances 0 … time; the shares are of the positions in the row's last quarter, which have the whole
    context before them.
    """
    time = tokens_BT.shape[1]
    queries = np.arange(3 * time // 4, time)
    distance_TS = queries[:, None] - np.arange(time)
    ranges = np.stack([(distance_TS >= a) & (distance_TS < b) for a, b in pairwise(edges)])

    @compiled
    def shares(model: Llama) -> jax.Array:
        def look(layer: Layer) -> jax.Array:
            return jnp.einsum("bhts,rts->hr", layer.a_BHTS[:, :, queries], ranges) / (len(tokens_BT) * len(queries))

        return walk(model, tokens_BT, look)[1]

    return np.asarray(shares(model))


def induction_at(model: Llama, tokens_BT: jax.Array, period: int) -> np.ndarray:
    """Induction scores, `[layers, heads]`, over a random text whose copy begins after `period` tokens."""
    scores = compiled(lambda model: walk(model, tokens_BT, lambda layer: induction(layer.a_BHTS, period))[1])
    return np.asarray(scores(model))
