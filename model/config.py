"""The shape of a network, in the names that transformers gives its fields."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from model.errors import KodaError


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """A LLaMA-style decoder (Touvron et al. 2023): everything that decides the shapes and the arithmetic.

    Raises KodaError for a shape that cannot be built, naming the field.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    max_position_embeddings: int
    head_dim: int = 0  # of every head; 0: hidden_size / num_attention_heads
    attention_bias: bool = False  # of the four matrices of attention
    mlp_bias: bool = False  # of the three of the feed-forward
    rope_theta: float = 10000.0
    # How positions beyond rope_original_context are reached.
    rope_scaling: Literal["none", "linear", "yarn", "llama3"] = "none"
    rope_factor: float = 1.0  # the longer context over the original one, where positions are scaled
    rope_original_context: int = 0  # tokens; the context that the model was trained on before scaling
    # Llama 3's bounds, in turns over the original context: pairs that make fewer than the first are slowed down by
    # rope_factor, those that make more than the second are not.
    rope_low_freq_factor: float = 1.0
    rope_high_freq_factor: float = 4.0
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False
    qk_norm: bool = False  # RMSNorm on each query and key head; transformers' Llama has none

    def __post_init__(self) -> None:
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if heads % kv_heads:
            fits = [n for n in (heads // kv_heads * kv_heads, (heads // kv_heads + 1) * kv_heads) if n]
            raise KodaError(
                f"model.num_attention_heads = {heads} is not a multiple of model.num_key_value_heads = {kv_heads}.\n"
                "Grouped-query attention shares each key/value head among an equal number of query heads; "
                f"{' or '.join(map(str, fits))} would fit."
            )
        if not self.head_dim and self.hidden_size % heads:
            raise KodaError(
                f"model.hidden_size = {self.hidden_size} is not a multiple of model.num_attention_heads = {heads}: "
                f"every head has the same size. {self.hidden_size // heads * heads or heads} would fit, or a "
                "model.head_dim of its own."
            )
        object.__setattr__(self, "head_dim", self.head_dim or self.hidden_size // heads)
        if self.head_dim % 2:
            raise KodaError(
                f"model.hidden_size = {self.hidden_size} and model.num_attention_heads = {heads}: heads of size "
                f"{self.head_dim}. Rotary positions turn pairs of numbers, so the size must be even."
            )

    @property
    def parameters(self) -> int:
        """Number of parameters; a tied embedding counts once."""
        width, inner = self.hidden_size, self.intermediate_size
        q_width, kv_width = (n * self.head_dim for n in (self.num_attention_heads, self.num_key_value_heads))
        attention = 2 * width * (q_width + kv_width) + (q_width + 2 * kv_width + width) * self.attention_bias
        feed_forward = 3 * width * inner + (2 * inner + width) * self.mlp_bias
        block = attention + feed_forward + 2 * width + 2 * self.head_dim * self.qk_norm
        embeddings = (1 if self.tie_word_embeddings else 2) * self.vocab_size * width
        return embeddings + self.num_hidden_layers * block + width

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How the network is computed. It changes speed and memory, never the shape of a checkpoint."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["auto", "none", "dots", "full"] = "none"
    scan: bool = False

    def forms(self) -> list["Compute"]:
        """What `auto` chooses from, the fastest first (bench/README.md), which takes the most memory; for any other
        remat, that alone."""
        if self.remat != "auto":
            return [self]
        unrolled = replace(self, remat="none", scan=False)  # scanned, it would keep float32 beside bfloat16
        return [unrolled, replace(self, remat="dots", scan=True), replace(self, remat="full", scan=True)]


# PEFT's names of the matrices (transformers' module names), and the attributes of a Block that they are.
LORA_TARGETS = {
    "q_proj": ("attention", "query"),
    "k_proj": ("attention", "key"),
    "v_proj": ("attention", "value"),
    "o_proj": ("attention", "out"),
    "gate_proj": ("mlp", "gate"),
    "up_proj": ("mlp", "up"),
    "down_proj": ("mlp", "down"),
}
