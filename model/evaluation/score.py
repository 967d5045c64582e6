"""Log-likelihoods: the one scorer behind every task.

Continuations of one context stand in one row behind it, as branches that do not see each other, and rows are filled
with several contexts: the context is read once, and little is padding. The head is applied only where a token's
probability is asked for, some positions at a time, so that the logits of a whole batch are never held.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model.attention import Segments
from model.llama import Llama

TOKENS = 4096  # of a batch
WIDTH = 256  # of a row at least; longer ones are a multiple of
BUCKET = 64
CHUNK = 128  # positions whose logits are held at once


class Score(NamedTuple):
    """How likely a continuation is after its context."""

    logprob: float  # sum over the continuation's tokens, nats
    greedy: bool  # each of its tokens is the likeliest one at its place
    tokens: int


class Family(NamedTuple):
    """A context and what is asked to follow it: the numbers of the requests, and their continuations."""

    context: list[int]
    requests: list[int]
    continuations: list[list[int]]

    @property
    def size(self) -> int:
        """Positions that it takes in a row: the last token of a continuation is predicted, and never read."""
        return len(self.context) + sum(len(ids) - 1 for ids in self.continuations)


class Row:
    """What is read in one row, and what is asked about it."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.segments: list[int] = []
        self.branches: list[int] = []
        self.asked: list[tuple[int, int, int]] = []  # after which column, which token, and for which request

    def add(self, family: Family) -> None:
        """Put a family behind what is there."""
        segment, stem = self.segments[-1] + 1 if self.segments else 1, len(family.context)
        self._read(family.context, 0, segment, 0)
        last = len(self.tokens) - 1
        for branch, (request, ids) in enumerate(zip(family.requests, family.continuations, strict=True), 1):
            begin = len(self.tokens)
            self._read(ids[:-1], stem, segment, branch)
            after = [last, *range(begin, begin + len(ids) - 1)]
            self.asked += [(column, token, request) for column, token in zip(after, ids, strict=True)]

    def _read(self, ids: list[int], position: int, segment: int, branch: int) -> None:
        self.tokens += ids
        self.positions += range(position, position + len(ids))
        self.segments += [segment] * len(ids)
        self.branches += [branch] * len(ids)


class Scorer:
    """Scores continuations with a model; what is longer than the context loses its beginning."""

    def __init__(self, model: Llama):
        self.context = model.config.max_position_embeddings
        self.truncated = 0  # requests so far that lost their beginning
        graph, self.state = nnx.split(model)

        @jax.jit
        def ask(
            state: nnx.State, read_4BT: jax.Array, at_N: jax.Array, targets_N: jax.Array, chunks: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            """Log-probability of each target after its place in the flattened batch, and whether it is the likeliest.

            The first `chunks` times CHUNK of them are computed.
            """
            model = nnx.merge(graph, state)
            tokens_BT, positions_BT, segments_BT, branches_BT = read_4BT
            x_BTD = model.hidden(model.embed(tokens_BT), Segments(segments_BT, branches_BT), positions_BT)
            x_XD = x_BTD.reshape(-1, x_BTD.shape[-1])

            def chunk(number: jax.Array, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
                at_C, target_C = (jax.lax.dynamic_slice_in_dim(a, number * CHUNK, CHUNK) for a in (at_N, targets_N))
                logits_CV = model.logits(x_XD[at_C][None])[0]
                chosen_C = jnp.take_along_axis(logits_CV, target_C[:, None], -1)[:, 0]
                new = chosen_C - jax.nn.logsumexp(logits_CV, -1), logits_CV.argmax(-1) == target_C
                return tuple(  # type: ignore[return-value]
                    jax.lax.dynamic_update_slice_in_dim(old, part, number * CHUNK, 0)
                    for old, part in zip(found, new, strict=True)
                )

            return jax.lax.fori_loop(0, chunks, chunk, (jnp.zeros(at_N.shape), jnp.zeros(at_N.shape, bool)))

        self._ask = ask

    def __call__(self, requests: Sequence[tuple[list[int], list[int]]]) -> list[Score]:
        """Score each (context, continuation), in the order given; both are token ids, and neither is empty."""
        logprobs, counts = np.zeros(len(requests)), np.zeros(len(requests), int)
        greedy = np.ones(len(requests), bool)
        for asked, found, best in self._batches(self._families(requests)):
            numbers = [request for _, _, request in asked]
            np.add.at(logprobs, numbers, found)
            np.add.at(counts, numbers, 1)
            np.logical_and.at(greedy, numbers, best)
        return [Score(float(a), bool(b), int(c)) for a, b, c in zip(logprobs, greedy, counts, strict=True)]

    def stream(self, tokens: np.ndarray, window: int) -> np.ndarray:
        """Log-probability of each token but the first of a long text, `[tokens - 1]`, in nats.

        The text is read in overlapping windows, and each token past the first window is scored with at least half a
        window before it.
        """
        half, ids = window // 2, tokens.tolist()
        families = []
        for start in range(0, max(1, len(ids) - 1 - half), half):
            fresh = start + (0 if start == 0 else half)  # what the window before has not scored
            families.append(_alone(ids[start : fresh + 1], ids[fresh + 1 : start + window + 1], fresh))
        found = np.zeros(len(ids) - 1, np.float32)
        for asked, logprobs, _ in self._batches(families):
            begins: dict[int, int] = {}  # the tokens of one request come in their order
            for (_, _, first), logprob in zip(asked, logprobs, strict=True):
                found[first + begins.setdefault(first, 0)] = logprob
                begins[first] += 1
        return found

    def _families(self, requests: Sequence[tuple[list[int], list[int]]]) -> list[Family]:
        """The requests by their context; one that is too long for the model stands alone, without its beginning."""
        width, shared, families = self._width(requests), dict[tuple[int, ...], Family](), []
        for number, (context, continuation) in enumerate(requests):
            if len(context) + len(continuation) > self.context + 1:
                self.truncated += 1
                row = [*context, *continuation][-(self.context + 1) :]
                count = min(len(continuation), len(row) - 1)
                families.append(_alone(row[:-count], row[-count:], number))
                continue
            key = tuple(context)
            family = shared.get(key)
            if family is None or family.size + len(continuation) - 1 > width:
                family = shared[key] = Family(context, [], [])
                families.append(family)
            family.requests.append(number)
            family.continuations.append(continuation)
        return families

    def _width(self, requests: Sequence[tuple[list[int], list[int]]]) -> int:
        """Of a row: the longest request fits."""
        longest = max((len(context) + len(ids) - 1 for context, ids in requests), default=1)
        return max(WIDTH, -(-min(longest, self.context) // BUCKET) * BUCKET)

    def _batches(self, families: list[Family]) -> Iterator[tuple[list[tuple[int, int, int]], np.ndarray, np.ndarray]]:
        """What was asked, its log-probabilities, and which were the likeliest tokens, batch by batch."""
        width = max([WIDTH, *(-(-family.size // BUCKET) * BUCKET for family in families)])
        count = max(1, TOKENS // width)
        waiting = sorted(families, key=lambda family: -family.size)
        while waiting:
            rows, left = [Row() for _ in range(count)], []
            for family in waiting:  # the longest first, each into the first row that has room for it
                row = next((row for row in rows if len(row.tokens) + family.size <= width), None)
                left.append(family) if row is None else row.add(family)
            waiting = left
            yield self._answers(rows, width)

    def _answers(self, rows: list[Row], width: int) -> tuple[list[tuple[int, int, int]], np.ndarray, np.ndarray]:
        read_4BT = np.zeros((4, len(rows), width), np.int32)
        for number, row in enumerate(rows):
            parts = (row.tokens, row.positions, row.segments, row.branches)
            read_4BT[:, number, : len(row.tokens)] = parts
        asked = [(number * width + column, *more) for number, row in enumerate(rows) for column, *more in row.asked]
        size = -(-max(len(asked), len(rows) * width) // CHUNK) * CHUNK  # one shape, but for families of many branches
        at_N, targets_N = np.zeros((2, size), np.int32)
        at_N[: len(asked)], targets_N[: len(asked)] = [a for a, _, _ in asked], [t for _, t, _ in asked]
        found = self._ask(self.state, read_4BT, at_N, targets_N, np.int32(-(-len(asked) // CHUNK)))
        logprobs, best = (np.asarray(array)[: len(asked)] for array in found)
        return asked, logprobs, best  # type: ignore[return-value]


def _alone(context: list[int], continuation: list[int], request: int) -> Family:
    return Family(context, [request], [continuation])
