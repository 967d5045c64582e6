"""The network: a LLaMA-style decoder (Touvron et al. 2023, arXiv:2302.13971) in Flax NNX.

Letters in names: B batch, T time, S positions of the cache, D model width, F feed-forward width, H query heads,
K key/value heads, X either heads, A head size, P rotary pairs (A / 2), V vocabulary, L layers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from model.attention import Segments, attend, grouped_attention
from model.config import Compute, LlamaConfig
from model.matmul import matmul
from model.rope import angles, attention_scale, frequencies, rotate
from model.sharding import shard_rows

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


class Dropout(NamedTuple):
    """Leave out a share of what is added to the stream, in training alone (Srivastava et al. 2014)."""

    rate: float
    key: jax.Array

    def of(self, number: jax.Array | int) -> "Dropout":
        """The same for one of several places, which draws for itself."""
        return Dropout(self.rate, jax.random.fold_in(self.key, number))

    def __call__(self, y_BTD: jax.Array) -> jax.Array:
        kept_BTD = jax.random.bernoulli(self.key, 1 - self.rate, y_BTD.shape)
        return jnp.where(kept_BTD, y_BTD / (1 - self.rate), 0)


class Linear(nnx.Module):
    """x · W, plus a bias, and LoRA's low-rank update where one was added (model/lora.py)."""

    def __init__(self, inputs: int, outputs: int, std: float, bias: bool, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), (inputs, outputs)))
        self.bias: nnx.Param | None = nnx.data(nnx.Param(jnp.zeros(outputs)) if bias else None)
        self.lora: nnx.Module | None = nnx.data(None)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = matmul(x, self.kernel[...])
        if self.bias is not None:
            y = y + self.bias[...].astype(y.dtype)
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
        width, bias, size = config.hidden_size, config.attention_bias, config.head_dim
        q_width, kv_width = config.num_attention_heads * size, config.num_key_value_heads * size
        self.head_dim, self.rope_scale = size, attention_scale(config)
        self.query = Linear(width, q_width, std, bias, rngs=rngs)
        self.key = Linear(width, kv_width, std, bias, rngs=rngs)
        self.value = Linear(width, kv_width, std, bias, rngs=rngs)
        self.out = Linear(q_width, width, std / (2 * config.num_hidden_layers) ** 0.5, bias, rngs=rngs)
        # Attention scores can grow without bound in long runs; these norms bound them, with one scale for all heads
        # (Dehghani et al. 2023, arXiv:2302.05442).
        norms = [RMSNorm(self.head_dim, config.rms_norm_eps) if config.qk_norm else None for _ in range(2)]
        self.query_norm, self.key_norm = map(nnx.data, norms)

    def project(self, x_BTD: jax.Array, angles_BTP: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        q_BTHA, k_BTKA, v_BTKA = (
            linear(x_BTD).reshape(*x_BTD.shape[:2], -1, self.head_dim) for linear in (self.query, self.key, self.value)
        )
        if self.query_norm is not None and self.key_norm is not None:
            q_BTHA, k_BTKA = self.query_norm(q_BTHA), self.key_norm(k_BTKA)
        q_BTHA, k_BTKA = (rotate(x_BTXA, angles_BTP, self.rope_scale) for x_BTXA in (q_BTHA, k_BTKA))
        return q_BTHA, k_BTKA, v_BTKA

    def __call__(self, x_BTD: jax.Array, angles_BTP: jax.Array, segments: Segments | None) -> jax.Array:
        q_BTHA, k_BTKA, v_BTKA = self.project(x_BTD, angles_BTP)
        return self.out(attend(q_BTHA, k_BTKA, v_BTKA, segments).reshape(*x_BTD.shape[:2], -1))

    def decode(
        self, x_BTD: jax.Array, angles_BTP: jax.Array, cache: tuple[jax.Array, jax.Array], start: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Attention of T new positions, the first at `start`, over the cache and themselves → output, updated cache."""
        q_BTHA, k_BTKA, v_BTKA = self.project(x_BTD, angles_BTP)
        k_BSKA, v_BSKA = (
            jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), start, axis=1)
            for old, new in zip(cache, (k_BTKA, v_BTKA), strict=True)
        )
        mask_TS = jnp.arange(k_BSKA.shape[1])[None, :] <= start + jnp.arange(x_BTD.shape[1])[:, None]
        y_BTHA = grouped_attention(q_BTHA, k_BSKA.astype(x_BTD.dtype), v_BSKA.astype(x_BTD.dtype), mask_TS[None])
        return self.out(y_BTHA.reshape(*x_BTD.shape[:2], -1)), (k_BSKA, v_BSKA)


class MLP(nnx.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: LlamaConfig, std: float, *, rngs: nnx.Rngs):
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate = Linear(width, inner, std, bias, rngs=rngs)
        self.up = Linear(width, inner, std, bias, rngs=rngs)
        self.down = Linear(inner, width, std / (2 * config.num_hidden_layers) ** 0.5, bias, rngs=rngs)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        h_BTF = jax.nn.silu(self.gate(x_BTD)) * self.up(x_BTD)
        return self.down(h_BTF)


class Block(nnx.Module):
    """One layer: attention and feed-forward, each after a norm and added to the residual stream."""

    def __init__(self, config: LlamaConfig, std: float, *, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config, std, rngs=rngs)
        self.mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config, std, rngs=rngs)

    def __call__(
        self, x_BTD: jax.Array, angles_BTP: jax.Array, segments: Segments | None, dropout: Dropout | None = None
    ) -> jax.Array:
        y_BTD = self.attention(self.attention_norm(x_BTD), angles_BTP, segments)
        x_BTD = x_BTD + (y_BTD if dropout is None else dropout.of(0)(y_BTD))
        y_BTD = self.mlp(self.mlp_norm(x_BTD))
        return x_BTD + (y_BTD if dropout is None else dropout.of(1)(y_BTD))

    def decode(
        self, x_BTD: jax.Array, angles_BTP: jax.Array, cache: tuple[jax.Array, jax.Array], start: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        y_BTD, cache = self.attention.decode(self.attention_norm(x_BTD), angles_BTP, cache, start)
        x_BTD = x_BTD + y_BTD
        return x_BTD + self.mlp(self.mlp_norm(x_BTD)), cache


class Llama(nnx.Module):
    """Tokens → logits. The layers' weights are stacked, `[layers, …]`, whether they are scanned or unrolled."""

    def __init__(self, config: LlamaConfig, compute: Compute | None = None, *, rngs: nnx.Rngs):
        self.config = config
        self.compute = (compute or Compute()).forms()[0]
        std = 0.02  # GPT-2's (Radford et al. 2019)

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
        # A sum in bfloat16 loses the gradients of a frequent token: the lookup, and so their sum, is in float32.
        return self.embedding[...][tokens_BT].astype(self.compute.dtype)

    def hidden(
        self,
        x_BTD: jax.Array,
        segments: Segments | None = None,
        positions_BT: jax.Array | None = None,
        dropout: Dropout | None = None,
    ) -> jax.Array:
        """Embeddings → the head's input, both `[batch, time, d_model]`.

        Positions count from the row's start unless `positions_BT` is passed. They do so in later segments too: rotary
        positions are relative, so a segment's offset has no effect.
        """
        angles_BTP = self.angles(jnp.arange(x_BTD.shape[1])[None] if positions_BT is None else positions_BT)
        graph, stacked_L = nnx.split(self.layers)

        numbers_L = None if dropout is None else jnp.arange(self.config.num_hidden_layers)

        def block(x_BTD: jax.Array, layer: tuple[nnx.State, jax.Array | None]) -> tuple[jax.Array, None]:
            state, number = layer
            own = None if dropout is None or number is None else dropout.of(number)
            return nnx.merge(graph, state)(shard_rows(x_BTD), angles_BTP, segments, own), None

        if self.compute.remat != "none":
            block = jax.checkpoint(block, policy=REMAT[self.compute.remat])
        x_BTD, _ = jax.lax.scan(block, x_BTD, (stacked_L, numbers_L), unroll=not self.compute.scan)
        return shard_rows(self.norm(x_BTD))

    def angles(self, positions_BT: jax.Array) -> jax.Array:
        return angles(positions_BT, frequencies(self.config))

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """`[batch, time, vocabulary]`, float32."""
        return jnp.einsum("btd,vd->btv", x_BTD, self.head_VD.astype(x_BTD.dtype), preferred_element_type=jnp.float32)

    def __call__(self, tokens_BT: jax.Array, segments: Segments | None = None) -> jax.Array:
        return self.logits(self.hidden(self.embed(tokens_BT), segments))

    def decode(self, tokens_BT: jax.Array, cache: Cache, start: jax.Array) -> tuple[jax.Array, Cache]:
        """Logits of T tokens that follow the `start` tokens in the cache, and the cache with the T tokens added."""
        angles_BTP = self.angles(start + jnp.arange(tokens_BT.shape[1])[None])
        graph, stacked_L = nnx.split(self.layers)

        def block(
            x_BTD: jax.Array, layer: tuple[nnx.State, tuple[jax.Array, jax.Array]]
        ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            state, kv = layer
            return nnx.merge(graph, state).decode(x_BTD, angles_BTP, kv, start)

        x_BTD, kv_L = jax.lax.scan(block, self.embed(tokens_BT), (stacked_L, (cache.k_LBSKA, cache.v_LBSKA)))
        return self.logits(self.norm(x_BTD)), Cache(*kv_L)
