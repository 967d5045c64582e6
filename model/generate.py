"""Token-by-token generation with a KV cache.

Letters in names: B batch, T time, V vocabulary.
"""

from collections.abc import Container, Iterator
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model.llama import Cache, Llama
from model.sampling import Sampling

BUCKET = 64  # prompts are padded to a multiple of this, so that few shapes are compiled


class State(NamedTuple):
    """The state of a generation between two tokens; it stays on the device."""

    logits_V: jax.Array  # of the next token
    seen_V: jax.Array  # bool: the token is in the prompt or in the text so far
    cache: Cache
    position: jax.Array  # of the next token
    key: jax.Array


@cache
def programs(graph: nnx.GraphDef[Llama]) -> tuple[jax.stages.Wrapped, jax.stages.Wrapped]:
    """What reads a prompt and what makes a step, compiled once for all models of a shape."""

    @partial(jax.jit, donate_argnums=2)
    def prefill(weights: nnx.State, tokens_BT: jax.Array, cache: Cache, count: jax.Array) -> tuple[jax.Array, Cache]:
        logits_BTV, cache = nnx.merge(graph, weights).decode(tokens_BT, cache, jnp.int32(0))
        return logits_BTV[0, count - 1], cache

    @partial(jax.jit, donate_argnums=1, static_argnums=2)
    def step(weights: nnx.State, state: State, sampling: Sampling) -> tuple[jax.Array, State]:
        next_key, key = jax.random.split(state.key)
        token = choose(state.logits_V, state.seen_V, key, sampling)
        logits_BTV, cache = nnx.merge(graph, weights).decode(token[None, None], state.cache, state.position)
        seen_V = state.seen_V.at[token].set(True)
        return token, State(logits_BTV[0, 0], seen_V, cache, state.position + 1, next_key)

    return prefill, step


class Generator:
    """Continues a prompt, token ids, with a model."""

    def __init__(self, model: Llama, context: int = 0):
        """`context`: tokens that there is room for, prompt and answer together; 0: as many as the model has."""
        self.config = model.config
        self.capacity = context or model.config.max_position_embeddings
        graph, self._weights = nnx.split(model)
        self._prefill, self._step = programs(graph)

    def __call__(self, prompt: list[int], stops: Container[int], sampling: Sampling = Sampling()) -> Iterator[int]:  # noqa: B008
        """Yield new tokens up to the limit; ends after one of `stops`, which is yielded, or when the context is full.

        A prompt that is longer than the context loses its beginning.
        """
        return (token for token, _ in self.tokens(prompt, stops, sampling))

    def tokens(
        self, prompt: list[int], stops: Container[int], sampling: Sampling, logits: bool = False
    ) -> Iterator[tuple[int, np.ndarray | None]]:
        """The same, and with each token, if wanted, the logits that it was chosen by, `[vocabulary]`."""
        prompt = prompt[-(self.capacity - 1) :]
        logits_V, cache = self._begin(prompt, len(prompt) + sampling.limit)
        seen_V = jnp.zeros(self.config.vocab_size, bool).at[jnp.asarray(prompt)].set(True)
        state = State(logits_V, seen_V, cache, jnp.int32(len(prompt)), jax.random.key(sampling.seed))
        # A static argument is compiled for each value; the limit and the seed do not change the computation.
        static = sampling._replace(limit=0, seed=0)
        for _ in range(min(sampling.limit, self.capacity - len(prompt))):
            seen = np.array(state.logits_V) if logits else None  # a copy, for the step reuses its memory
            token_id, state = self._step(self._weights, state, static)
            token = int(token_id)
            yield token, seen
            if token in stops:
                return

    def _begin(self, prompt: list[int], tokens: int) -> tuple[jax.Array, Cache]:
        """Logits of the token after `prompt`, and the cache with the prompt in it: room for `tokens`, or the context.

        A step takes as long as the cache is; its lengths are powers of two, so that few are compiled.
        """
        room = BUCKET << ((tokens - 1) // BUCKET).bit_length()
        cache = Cache.empty(self.config, 1, min(room, self.capacity))
        length = min(-(-len(prompt) // BUCKET) * BUCKET, self.capacity)
        padded_BT = jnp.asarray([prompt + [0] * (length - len(prompt))])
        return self._prefill(self._weights, padded_BT, cache, jnp.int32(len(prompt)))


def choose(logits_V: jax.Array, seen_V: jax.Array, key: jax.Array, sampling: Sampling) -> jax.Array:
    """The next token's id, int32. Penalty, temperature, top-k and top-p act in this order, as in transformers."""
    if (penalty := sampling.repetition_penalty) != 1:
        penalized_V = jnp.where(logits_V > 0, logits_V / penalty, logits_V * penalty)
        logits_V = jnp.where(seen_V, penalized_V, logits_V)
    if sampling.temperature == 0:
        return jnp.argmax(logits_V).astype(jnp.int32)
    logits_V = logits_V / sampling.temperature
    if sampling.top_k:
        lowest = jax.lax.top_k(logits_V, min(sampling.top_k, len(logits_V)))[0][-1]
        logits_V = jnp.where(logits_V < lowest, -jnp.inf, logits_V)
    if sampling.top_p < 1:
        sorted_V = jnp.sort(logits_V)[::-1]
        before_V = jnp.cumsum(jax.nn.softmax(sorted_V)) - jax.nn.softmax(sorted_V)
        lowest = jnp.min(jnp.where(before_V < sampling.top_p, sorted_V, sorted_V[0]))
        logits_V = jnp.where(logits_V < lowest, -jnp.inf, logits_V)
    return jax.random.categorical(key, logits_V).astype(jnp.int32)
