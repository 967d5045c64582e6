"""Log-likelihoods: the one scorer of every task.

All continuations of a context are in one row after it, as branches that cannot see each other, and a row is packed with
several contexts: each context is read once, and little is padding. The head is applied only to the positions that are
scored, a chunk at a time, so that the logits of a whole batch are never in memory at once.

Letters in names: B batch, T time, D model width, V vocabulary, X positions of a batch (B · T), N targets, C targets of
a chunk; R rows, S their tokens; 4 token, position, segment and branch of each place in a batch.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model.attention import Segments
from model.llama import Llama

TOKENS = 4096  # of a batch
WIDTH = 256  # tokens; the least of a row
BUCKET = 64  # tokens; longer rows are padded to a multiple of this, so that few shapes are compiled
CHUNK = 128  # targets whose logits are in memory at once


class Score(NamedTuple):
    """How likely a continuation is after its context."""

    logprob: float  # sum over the continuation's tokens, nats
    greedy: bool  # each of its tokens is the likeliest one at its position
    tokens: int


class Family(NamedTuple):
    """A context, its continuations, and the numbers of their requests."""

    context: list[int]
    requests: list[int]
    continuations: list[list[int]]

    @property
    def size(self) -> int:
        """Positions that it needs in a row: the last token of a continuation is predicted, and never read."""
        return len(self.context) + sum(len(ids) - 1 for ids in self.continuations)


class Row:
    """One row of a batch: what the model reads, and the targets to score."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.segments: list[int] = []
        self.branches: list[int] = []
        self.targets: list[tuple[int, int, int]] = []  # column before the token, token, request

    def add(self, family: Family) -> None:
        """Append a family, as a segment of its own."""
        segment, length = self.segments[-1] + 1 if self.segments else 1, len(family.context)
        self._append(family.context, 0, segment, 0)
        last = len(self.tokens) - 1
        for branch, (request, ids) in enumerate(zip(family.requests, family.continuations, strict=True), 1):
            begin = len(self.tokens)
            self._append(ids[:-1], length, segment, branch)
            columns = [last, *range(begin, begin + len(ids) - 1)]
            self.targets += [(column, token, request) for column, token in zip(columns, ids, strict=True)]

    def _append(self, ids: list[int], position: int, segment: int, branch: int) -> None:
        self.tokens += ids
        self.positions += range(position, position + len(ids))
        self.segments += [segment] * len(ids)
        self.branches += [branch] * len(ids)


@partial(jax.jit, static_argnums=0)  # compiled once for all models of a shape
def score_batch(
    graph: nnx.GraphDef[Llama],
    state: nnx.State,
    batch_4BT: jax.Array,
    at_N: jax.Array,
    targets_N: jax.Array,
    chunks: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each target after its position in the flattened batch; whether it is the likeliest.

    Computed for the first `chunks` times CHUNK targets.
    """
    model = nnx.merge(graph, state)
    tokens_BT, positions_BT, segments_BT, branches_BT = batch_4BT
    x_BTD = model.hidden(model.embed(tokens_BT), Segments(segments_BT, branches_BT), positions_BT)
    x_XD = x_BTD.reshape(-1, x_BTD.shape[-1])

    def chunk(number: jax.Array, results: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        at_C, target_C = (jax.lax.dynamic_slice_in_dim(a, number * CHUNK, CHUNK) for a in (at_N, targets_N))
        logits_CV = model.logits(x_XD[at_C][None])[0]
        logit_C = jnp.take_along_axis(logits_CV, target_C[:, None], -1)[:, 0]
        new = logit_C - jax.nn.logsumexp(logits_CV, -1), logits_CV.argmax(-1) == target_C
        return tuple(  # type: ignore[return-value]
            jax.lax.dynamic_update_slice_in_dim(old, part, number * CHUNK, 0)
            for old, part in zip(results, new, strict=True)
        )

    return jax.lax.fori_loop(0, chunks, chunk, (jnp.zeros(at_N.shape), jnp.zeros(at_N.shape, bool)))


class Scorer:
    """Scores continuations with a model; a request that is longer than the context loses its beginning."""

    def __init__(self, model: Llama):
        self.context = model.config.max_position_embeddings
        self.truncated = 0  # requests so far that lost their beginning
        self.graph, self.state = nnx.split(model)

    def __call__(self, requests: Sequence[tuple[list[int], list[int]]]) -> list[Score]:
        """Score each request, (context, continuation), in order; both are token ids, and neither is empty."""
        logprobs, counts = np.zeros(len(requests)), np.zeros(len(requests), int)
        greedy = np.ones(len(requests), bool)
        for targets, values, best in self._batches(self._families(requests)):
            numbers = [request for _, _, request in targets]
            np.add.at(logprobs, numbers, values)
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
            fresh = start + (0 if start == 0 else half)  # the first target that the window before has not scored
            families.append(_single(ids[start : fresh + 1], ids[fresh + 1 : start + window + 1], fresh))
        return self._each(families, len(ids) - 1)

    def rows(self, tokens_RS: np.ndarray) -> np.ndarray:
        """Log-probability of each token but the first of each row, `[rows, tokens - 1]`, in nats."""
        count = tokens_RS.shape[1] - 1
        families = [_single(ids[:1], ids[1:], number * count) for number, ids in enumerate(tokens_RS.tolist())]
        return self._each(families, len(tokens_RS) * count).reshape(-1, count)

    def _each(self, families: list[Family], size: int) -> np.ndarray:
        """Log-probability of each target, `[size]`; a family's request is the number of its first one."""
        logprobs = np.zeros(size, np.float32)
        for targets, values, _ in self._batches(families):
            counts: dict[int, int] = {}  # by request: its targets come in the order of the text
            for (_, _, first), value in zip(targets, values, strict=True):
                logprobs[first + counts.setdefault(first, 0)] = value
                counts[first] += 1
        return logprobs

    def _families(self, requests: Sequence[tuple[list[int], list[int]]]) -> list[Family]:
        """Group the requests by their context; one that is too long is a family of its own, without its beginning."""
        width, shared, families = self._width(requests), dict[tuple[int, ...], Family](), []
        for number, (context, continuation) in enumerate(requests):
            if len(context) + len(continuation) > self.context + 1:
                self.truncated += 1
                row = [*context, *continuation][-(self.context + 1) :]
                count = min(len(continuation), len(row) - 1)
                families.append(_single(row[:-count], row[-count:], number))
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
        """Width of a row, so that the longest request fits."""
        longest = max((len(context) + len(ids) - 1 for context, ids in requests), default=1)
        return max(WIDTH, -(-min(longest, self.context) // BUCKET) * BUCKET)

    def _batches(self, families: list[Family]) -> Iterator[tuple[list[tuple[int, int, int]], np.ndarray, np.ndarray]]:
        """Batch by batch: the targets, their log-probabilities, and which are the likeliest tokens."""
        width = max([WIDTH, *(-(-family.size // BUCKET) * BUCKET for family in families)])
        count = max(1, TOKENS // width)
        waiting = sorted(families, key=lambda family: -family.size)
        while waiting:
            rows, left = [Row() for _ in range(count)], []
            for family in waiting:  # first-fit decreasing: the longest first, each into the first row with room for it
                row = next((row for row in rows if len(row.tokens) + family.size <= width), None)
                left.append(family) if row is None else row.add(family)
            waiting = left
            yield self._score_rows(rows, width)

    def _score_rows(self, rows: list[Row], width: int) -> tuple[list[tuple[int, int, int]], np.ndarray, np.ndarray]:
        batch_4BT = np.zeros((4, len(rows), width), np.int32)
        for number, row in enumerate(rows):
            parts = (row.tokens, row.positions, row.segments, row.branches)
            batch_4BT[:, number, : len(row.tokens)] = parts
        targets = [(number * width + column, *more) for number, row in enumerate(rows) for column, *more in row.targets]
        # The number of positions as size compiles one shape; families of many branches can have more targets than that.
        size = -(-max(len(targets), len(rows) * width) // CHUNK) * CHUNK
        at_N, targets_N = np.zeros((2, size), np.int32)
        at_N[: len(targets)], targets_N[: len(targets)] = [a for a, _, _ in targets], [t for _, t, _ in targets]
        chunks = np.int32(-(-len(targets) // CHUNK))
        results = score_batch(self.graph, self.state, batch_4BT, at_N, targets_N, chunks)
        logprobs, best = (np.asarray(array)[: len(targets)] for array in results)
        return targets, logprobs, best  # type: ignore[return-value]


def _single(context: list[int], continuation: list[int], request: int) -> Family:
    return Family(context, [request], [continuation])
