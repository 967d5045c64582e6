"""The network: a LLaMA-style decoder (Touvron et al. 2023, arXiv:2302.13971) in Flax NNX.

Letters in names: B batch, T time, D model width, F feed-forward width, H query heads, K key/value heads, A head size,
V vocabulary, L layers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from model.attention import Segments, attend, grouped_attention
from model.config import Compute, LlamaConfig
from model.matmul import matmul
from model.rope import angles, attention_scale, frequencies, rotate
from model.sharding import keep_rows

REMAT = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Cache(NamedTuple):
    """Keys and values of the positions already read, `[layers, batch, capacity, kv_heads, head_dim]`."""

    k_LBSKA: jax.Array
    v_LBSKA: jax.Array

    @staticmethod
    def empty(config: LlamaConfig, batch: int, capacity: int, dtype: str = "float32") -> "Cache":
        shape = (config.num_hidden_layers, batch, capacity, config.num_key_value_heads, config.head_dim)
        return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


class Linear(nnx.Module):
    """x · W without a bias, and beside it the low-rank update of LoRA where one was added (model/lora.py)."""

    def __init__(self, inputs: int, outputs: int, std: float, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), (inputs, outputs)))
        self.lora: nnx.Module | None = nnx.data(None)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = matmul(x, self.kernel[...])
        return y if self.lora is None else y + self.lora(x)


class RMSNorm(nnx.Module):
    """Root-mean-square norm (Zhang and Sennrich 2019), in float32."""

    def __init__(self, width: int, epsilon: float):
        self.scale = nnx.Param(jnp.ones(width))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        rms = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.epsilon)
        return (x32 * rms * self.scale[...]).astype(x.dtype)


class Attention(nnx.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, config: LlamaConfig, std: float, *, rngs: nnx.Rngs):
        width, kv_width = config.hidden_size, config.num_key_value_heads * config.head_dim
        self.head_dim, self.rope_scale = config.head_dim, attention_scale(config)
        self.query = Linear(width, width, std, rngs=rngs)
        self.key = Linear(width, kv_width, std, rngs=rngs)
        self.value = Linear(width, kv_width, std, rngs=rngs)
        self.out = Linear(width, width, std / (2 * config.num_hidden_layers) ** 0.5, rngs=rngs)
        # One scale for all heads (Dehghani et al. 2023, arXiv:2302.05442): it bounds the scores in long runs.
        norms = [RMSNorm(self.head_dim, config.rms_norm_eps) if config.qk_norm else None for _ in range(2)]
        self.query_norm, self.key_norm = map(nnx.data, norms)

    def project(self, x_BTD: jax.Array, angles_BTF: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        q_BTHA, k_BTKA, v_BTKA = (
            linear(x_BTD).reshape(*x_BTD.shape[:2], -1, self.head_dim) for linear in (self.query, self.key, self.value)
        )
        if self.query_norm is not None and self.key_norm is not None:
            q_BTHA, k_BTKA = self.query_norm(q_BTHA), self.key_norm(k_BTKA)
        q_BTHA, k_BTKA = (rotate(x_BTXA, angles_BTF, self.rope_scale) for x_BTXA in (q_BTHA, k_BTKA))
        return q_BTHA, k_BTKA, v_BTKA

    def __call__(self, x_BTD: jax.Array, angles_BTF: jax.Array, segments: Segments | None) -> jax.Array:
        q_BTHA, k_BTKA, v_BTKA = self.project(x_BTD, angles_BTF)
        return self.out(attend(q_BTHA, k_BTKA, v_BTKA, segments).reshape(x_BTD.shape))

    def decode(
        self, x_BTD: jax.Array, angles_BTF: jax.Array, cache: tuple[jax.Array, jax.Array], start: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Attention of T new positions from `start` on, over the cache and themselves; returns the longer cache."""
        q_BTHA, k_BTKA, v_BTKA = self.project(x_BTD, angles_BTF)
        k_BSKA, v_BSKA = (
            jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), start, axis=1)
            for old, new in zip(cache, (k_BTKA, v_BTKA), strict=True)
        )
        mask_TS = jnp.arange(k_BSKA.shape[1])[None, :] <= start + jnp.arange(x_BTD.shape[1])[:, None]
        y_BTHA = grouped_attention(q_BTHA, k_BSKA.astype(x_BTD.dtype), v_BSKA.astype(x_BTD.dtype), mask_TS[None])
        return self.out(y_BTHA.reshape(x_BTD.shape)), (k_BSKA, v_BSKA)


class MLP(nnx.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: LlamaConfig, std: float, *, rngs: nnx.Rngs):
        width, inner = config.hidden_size, config.intermediate_size
        self.gate = Linear(width, inner, std, rngs=rngs)
        self.up = Linear(width, inner, std, rngs=rngs)
        self.down = Linear(inner, width, std / (2 * config.num_hidden_layers) ** 0.5, rngs=rngs)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        return self.down(jax.nn.silu(self.gate(x_BTD)) * self.up(x_BTD))


class Block(nnx.Module):
    """One layer: attention and feed-forward, each behind a norm and added to the stream."""

    def __init__(self, config: LlamaConfig, std: float, *, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config, std, rngs=rngs)
        self.mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config, std, rngs=rngs)

    def __call__(self, x_BTD: jax.Array, angles_BTF: jax.Array, segments: Segments | None) -> jax.Array:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), angles_BTF, segments)
        return x_BTD + self.mlp(self.mlp_norm(x_BTD))

    def decode(
        self, x_BTD: jax.Array, angles_BTF: jax.Array, cache: tuple[jax.Array, jax.Array], start: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        y_BTD, cache = self.attention.decode(self.attention_norm(x_BTD), angles_BTF, cache, start)
        x_BTD = x_BTD + y_BTD
        return x_BTD + self.mlp(self.mlp_norm(x_BTD)), cache


class Llama(nnx.Module):
    """Tokens in, logits out. The layers' weights are stacked, `[layers, …]`, whether they are scanned or unrolled."""

    def __init__(self, config: LlamaConfig, compute: Compute | None = None, *, rngs: nnx.Rngs):
        self.config = config
        self.compute = compute or Compute()
        std = 0.02  # GPT-2's

        @nnx.split_rngs(splits=config.num_hidden_layers)
        @nnx.vmap
        def stack(rngs: nnx.Rngs) -> Block:
            return Block(config, std, rngs=rngs)

        def table() -> nnx.Param:
            return nnx.Param(std * jax.random.normal(rngs.params(), (config.vocab_size, config.hidden_size)))

        self.embedding = table()
        self.layers = stack(rngs)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head: nnx.Param | None = nnx.data(None if config.tie_word_embeddings else table())

    @property
    def head_VD(self) -> jax.Array:
        return (self.embedding if self.head is None else self.head)[...]

    def embed(self, tokens_BT: jax.Array) -> jax.Array:
        # Looked up in float32, so that the gradients of a token that comes often are summed up in float32.
        return self.embedding[...][tokens_BT].astype(self.compute.dtype)

    def hidden(
        self, x_BTD: jax.Array, segments: Segments | None = None, positions_BT: jax.Array | None = None
    ) -> jax.Array:
        """From embeddings to what the head reads, `[batch, time, d_model]`.

        Positions count from the row's start unless they are given, also where segments shut documents off from one
        another: rotary positions are relative, so that a segment's own offset does not show.
        """
        angles_BTF = self.angles(jnp.arange(x_BTD.shape[1])[None] if positions_BT is None else positions_BT)
        graph, stacked_L = nnx.split(self.layers)

        def block(x_BTD: jax.Array, layer: nnx.State) -> tuple[jax.Array, None]:
            return nnx.merge(graph, layer)(keep_rows(x_BTD), angles_BTF, segments), None

        if self.compute.remat != "none":
            block = jax.checkpoint(block, policy=REMAT[self.compute.remat])
        x_BTD, _ = jax.lax.scan(block, x_BTD, stacked_L, unroll=not self.compute.scan)
        return keep_rows(self.norm(x_BTD))

    def angles(self, positions_BT: jax.Array) -> jax.Array:
        return angles(positions_BT, frequencies(self.config))

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """`[batch, time, vocabulary]`, float32."""
        return jnp.einsum("btd,vd->btv", x_BTD, self.head_VD.astype(x_BTD.dtype), preferred_element_type=jnp.float32)

    def __call__(self, tokens_BT: jax.Array, segments: Segments | None = None) -> jax.Array:
        return self.logits(self.hidden(self.embed(tokens_BT), segments))

    def decode(self, tokens_BT: jax.Array, cache: Cache, start: jax.Array) -> tuple[jax.Array, Cache]:
        """Logits of T further tokens after the `start` that the cache holds, and the cache with them in it."""
        angles_BTF = self.angles(start + jnp.arange(tokens_BT.shape[1])[None])
        graph, stacked_L = nnx.split(self.layers)

        def block(
            x_BTD: jax.Array, layer: tuple[nnx.State, tuple[jax.Array, jax.Array]]
        ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            state, kv = layer
            return nnx.merge(graph, state).decode(x_BTD, angles_BTF, kv, start)

        x_BTD, kv_L = jax.lax.scan(block, self.embed(tokens_BT), (stacked_L, (cache.k_LBSKA, cache.v_LBSKA)))
        return self.logits(self.norm(x_BTD)), Cache(*kv_L)
