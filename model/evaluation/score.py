"""Log-likelihoods: the one scorer behind every task."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model.llama import Llama

BUCKET = 32  # sequences are filled up to a multiple of this, so that few shapes are compiled
BATCH = 16


class Score(NamedTuple):
    """How likely a continuation is after its context."""

    logprob: float  # sum over the continuation's tokens, nats
    greedy: bool  # each of its tokens is the likeliest one at its place
    tokens: int


class Scorer:
    """Scores continuations with a model; what is longer than the context loses its beginning."""

    def __init__(self, model: Llama):
        self.context = model.config.max_position_embeddings
        graph, self.state = nnx.split(model)

        @jax.jit
        def token_scores(state: nnx.State, inputs_BT: jax.Array, targets_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits_BTV = nnx.merge(graph, state)(inputs_BT)
            chosen_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], -1)[..., 0]
            best_BT = logits_BTV.argmax(-1) == targets_BT
            return chosen_BT - jax.nn.logsumexp(logits_BTV, -1), best_BT

        self._token_scores = token_scores

    def __call__(self, requests: Sequence[tuple[list[int], list[int]]]) -> list[Score]:
        """Score each (context, continuation), in the order given; both are token ids and the context is not empty."""
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i][0]) - len(requests[i][1]))
        scores: list[Score | None] = [None] * len(requests)
        for first in range(0, len(order), BATCH):
            group = order[first : first + BATCH]
            rows = [(requests[i][0] + requests[i][1])[-(self.context + 1) :] for i in group]
            longest = max(len(row) for row in rows) - 1
            width = min(-(-longest // BUCKET) * BUCKET, max(longest, self.context))
            tokens_BS = np.zeros((BATCH, width + 1), np.int32)
            for number, row in enumerate(rows):
                tokens_BS[number, : len(row)] = row
            logprobs_BT, best_BT = map(np.asarray, self._token_scores(self.state, tokens_BS[:, :-1], tokens_BS[:, 1:]))
            for number, (i, row) in enumerate(zip(group, rows, strict=True)):
                count = min(len(requests[i][1]), len(row) - 1)
                span = slice(len(row) - 1 - count, len(row) - 1)
                scores[i] = Score(float(logprobs_BT[number, span].sum()), bool(best_BT[number, span].all()), count)
        return [score for score in scores if score is not None]

    def stream(self, tokens: np.ndarray, window: int) -> np.ndarray:
        """Log-probability of each token but the first of a long text, `[tokens - 1]`, in nats.

        The text is read in overlapping windows, and each token past the first window is scored with at least half a
        window before it.
        """
        half = window // 2
        found = np.zeros(len(tokens) - 1, np.float32)
        starts = list(range(0, max(1, len(tokens) - 1 - half), half))
        for first in range(0, len(starts), BATCH):
            group = starts[first : first + BATCH]
            tokens_BS = np.zeros((BATCH, window + 1), np.int32)
            for number, start in enumerate(group):
                piece = tokens[start : start + window + 1]
                tokens_BS[number, : len(piece)] = piece
            logprobs_BT = np.asarray(self._token_scores(self.state, tokens_BS[:, :-1], tokens_BS[:, 1:])[0])
            for number, start in enumerate(group):
                fresh = 0 if start == 0 else half
                count = min(window, len(tokens) - 1 - start)
                found[start + fresh : start + count] = logprobs_BT[number, fresh:count]
        return found
