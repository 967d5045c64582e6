"""Text from a model, token by token, with a KV cache."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model.llama import Cache, Llama

BUCKET = 64  # prompts are filled up to a multiple of this, so that few shapes are compiled


class Generator:
    """Continues token ids with a model; `temperature` 0 takes the likeliest token each time."""

    def __init__(self, model: Llama):
        self.model = model
        self.capacity = model.config.max_position_embeddings
        graph, self.state = nnx.split(model)

        @partial(jax.jit, donate_argnums=2)
        def extend(state: nnx.State, tokens_BT: jax.Array, cache: Cache, start: jax.Array) -> tuple[jax.Array, Cache]:
            return nnx.merge(graph, state).decode(tokens_BT, cache, start)

        self._extend = extend

    def _read(self, prompt: list[int]) -> tuple[jax.Array, Cache]:
        """Logits of the token after `prompt`, and the cache that holds it."""
        cache = Cache.empty(self.model.config, 1, self.capacity)
        filled = min(-(-len(prompt) // BUCKET) * BUCKET, self.capacity)
        padded = jnp.asarray([prompt + [0] * (filled - len(prompt))])
        logits_BTV, cache = self._extend(self.state, padded, cache, jnp.int32(0))
        return logits_BTV[0, len(prompt) - 1], cache

    def logprobs(self, prompt: list[int]) -> np.ndarray:
        """Log-probabilities of the token after `prompt`, `[vocabulary]`, nats."""
        return np.asarray(jax.nn.log_softmax(self._read(prompt)[0]))

    def __call__(
        self, prompt: list[int], *, limit: int, stop: int, temperature: float = 0.0, seed: int = 0
    ) -> Iterator[int]:
        """Yield up to `limit` new tokens, ending after `stop` (which is yielded) or when the context is full."""
        prompt = prompt[-(self.capacity - 1) :]
        logits_V, cache = self._read(prompt)
        key = jax.random.key(seed)
        for position in range(len(prompt), min(len(prompt) + limit, self.capacity)):
            key, now = jax.random.split(key)
            token = int(
                jnp.argmax(logits_V) if temperature == 0 else jax.random.categorical(now, logits_V / temperature)
            )
            yield token
            if token == stop:
                return
            logits_BTV, cache = self._extend(self.state, jnp.asarray([[token]]), cache, jnp.int32(position))
            logits_V = logits_BTV[0, 0]


def ending_share(model: Llama, prompts: list[list[int]], *, limit: int, stop: int) -> float:
    """Share of the prompts whose greedy answer ends by itself within `limit` tokens."""
    generate = Generator(model)
    ended = [list(generate(prompt, limit=limit, stop=stop))[-1:] == [stop] for prompt in prompts]
    return float(np.mean(ended))
