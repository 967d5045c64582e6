"""Text from a model, token by token, with a KV cache."""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from model.llama import Cache, Llama
from model.sampling import Sampling

BUCKET = 64  # prompts are filled up to a multiple of this, so that few shapes are compiled


class State(NamedTuple):
    """Where a generation stands; it stays on the device."""

    logits_V: jax.Array  # of the next token
    seen_V: jax.Array  # bool: was the token there before?
    cache: Cache
    position: jax.Array  # of the next token
    key: jax.Array


class Generator:
    """Continues token ids with a model."""

    def __init__(self, model: Llama):
        self.config = model.config
        self.capacity = model.config.max_position_embeddings
        graph, self.state = nnx.split(model)

        @partial(jax.jit, donate_argnums=2)
        def read(state: nnx.State, tokens_BT: jax.Array, cache: Cache, count: jax.Array) -> tuple[jax.Array, Cache]:
            logits_BTV, cache = nnx.merge(graph, state).decode(tokens_BT, cache, jnp.int32(0))
            return logits_BTV[0, count - 1], cache

        @partial(jax.jit, donate_argnums=1, static_argnums=2)
        def step(state: nnx.State, at: State, sampling: Sampling) -> tuple[jax.Array, State]:
            key, now = jax.random.split(at.key)
            token = choose(at.logits_V, at.seen_V, now, sampling)
            logits_BTV, cache = nnx.merge(graph, state).decode(token[None, None], at.cache, at.position)
            seen_V = at.seen_V.at[token].set(True)
            return token, State(logits_BTV[0, 0], seen_V, cache, at.position + 1, key)

        self._read, self._step = read, step

    def __call__(self, prompt: list[int], stop: int, sampling: Sampling = Sampling()) -> Iterator[int]:  # noqa: B008
        """Yield new tokens up to the limit, ending after `stop` (which is yielded) or when the context is full."""
        prompt = prompt[-(self.capacity - 1) :]
        logits_V, cache = self._begin(prompt)
        seen_V = jnp.zeros(self.config.vocab_size, bool).at[jnp.asarray(prompt)].set(True)
        at = State(logits_V, seen_V, cache, jnp.int32(len(prompt)), jax.random.key(sampling.seed))
        same = sampling._replace(limit=0, seed=0)  # neither changes what is compiled
        for _ in range(min(sampling.limit, self.capacity - len(prompt))):
            chosen, at = self._step(self.state, at, same)
            token = int(chosen)
            yield token
            if token == stop:
                return

    def _begin(self, prompt: list[int]) -> tuple[jax.Array, Cache]:
        """Logits of the token after `prompt`, and the cache that holds it."""
        cache = Cache.empty(self.config, 1, self.capacity)
        filled = min(-(-len(prompt) // BUCKET) * BUCKET, self.capacity)
        padded = jnp.asarray([prompt + [0] * (filled - len(prompt))])
        return self._read(self.state, padded, cache, jnp.int32(len(prompt)))


def choose(logits_V: jax.Array, seen_V: jax.Array, key: jax.Array, sampling: Sampling) -> jax.Array:
    """The next token's id, int32. Penalty, temperature, top-k and top-p act in this order, as in transformers."""
    if (penalty := sampling.repetition_penalty) != 1:
        punished_V = jnp.where(logits_V > 0, logits_V / penalty, logits_V * penalty)
        logits_V = jnp.where(seen_V, punished_V, logits_V)
    if sampling.temperature == 0:
        return jnp.argmax(logits_V).astype(jnp.int32)
    logits_V = logits_V / sampling.temperature
    if sampling.top_k:
        least = jax.lax.top_k(logits_V, min(sampling.top_k, len(logits_V)))[0][-1]
        logits_V = jnp.where(logits_V < least, -jnp.inf, logits_V)
    if sampling.top_p < 1:
        sorted_V = jnp.sort(logits_V)[::-1]
        before_V = jnp.cumsum(jax.nn.softmax(sorted_V)) - jax.nn.softmax(sorted_V)
        least = jnp.min(jnp.where(before_V < sampling.top_p, sorted_V, jnp.inf))
        logits_V = jnp.where(logits_V < least, -jnp.inf, logits_V)
    return jax.random.categorical(key, logits_V).astype(jnp.int32)
