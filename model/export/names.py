"""The one place that knows what transformers calls Koda's weights; GGUF, MLX and PEFT names derive from these."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from model.config import LORA_TARGETS, LlamaConfig
from model.errors import KodaError

# Koda's path inside a block → transformers' module inside a layer.
NORMS = {("attention_norm",): "input_layernorm", ("mlp_norm",): "post_attention_layernorm"}
MODULES = {path: f"{'self_attn' if path[0] == 'attention' else 'mlp'}.{name}" for name, path in LORA_TARGETS.items()}


def head_module(tied: bool) -> str:
    """The module whose weight is the head: its own, or the embedding's."""
    return "model.embed_tokens" if tied else "lm_head"


def to_hf(params: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Each tensor as transformers stores it, one at a time: matrices as `[outputs, inputs]`.

    `params` are the nested dicts of a Llama; a tied head is not written a second time.
    """
    yield "model.embed_tokens.weight", np.asarray(params["embedding"])
    layers = params["layers"]
    for number in range(layers["attention_norm"]["scale"].shape[0]):
        for (norm,), name in NORMS.items():
            yield f"model.layers.{number}.{name}.weight", np.asarray(layers[norm]["scale"][number])
        for (part, matrix), name in MODULES.items():
            linear = layers[part][matrix]
            yield f"model.layers.{number}.{name}.weight", np.asarray(linear["kernel"][number]).T
            if "bias" in linear:
                yield f"model.layers.{number}.{name}.bias", np.asarray(linear["bias"][number])
    yield "model.norm.weight", np.asarray(params["norm"]["scale"])
    if "head" in params:
        yield "lm_head.weight", np.asarray(params["head"])


def shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that transformers stores for a model of this shape, and its own shape."""
    width, inner = config.hidden_size, config.intermediate_size
    q_width, kv_width = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    matrices = {
        "q_proj": (q_width, width),
        "k_proj": (kv_width, width),
        "v_proj": (kv_width, width),
        "o_proj": (width, q_width),
        "gate_proj": (inner, width),
        "up_proj": (inner, width),
        "down_proj": (width, inner),
    }
    table = (config.vocab_size, width)
    named: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": table}
    for number in range(config.num_hidden_layers):
        named |= {f"model.layers.{number}.{name}.weight": (width,) for name in NORMS.values()}
        for name, shape in matrices.items():
            path = LORA_TARGETS[name]
            named[f"model.layers.{number}.{MODULES[path]}.weight"] = shape
            if config.attention_bias if path[0] == "attention" else config.mlp_bias:
                named[f"model.layers.{number}.{MODULES[path]}.bias"] = shape[:1]
    named["model.norm.weight"] = (width,)
    return named if config.tie_word_embeddings else {**named, "lm_head.weight": table}


def check_tensors(
    actual: dict[str, tuple[int, ...]],
    config: LlamaConfig,
    where: object,
    stated: str = "config.json",
    spelled: Callable[[str], str] = str,
) -> None:
    """Raise KodaError, by the tensor's name, where the model `where` has not the tensors of a model of this shape.

    `stated` is where it states its shape, `spelled` how it spells transformers' names. A tied head may be there too.
    """
    expected = {spelled(name): shape for name, shape in shapes(config).items()}
    optional = {spelled("lm_head.weight")} if config.tie_word_embeddings else set()
    if unknown := sorted(actual.keys() - expected.keys() - optional):
        raise KodaError(f"{where}: {unknown[0]} has no place in a LlamaForCausalLM as Koda computes it.")
    for name, shape in expected.items():
        if name not in actual:
            raise KodaError(f"{where}: {name} is missing.")
        if actual[name] != shape:
            raise KodaError(f"{where}: {name} is {actual[name]}, {stated} has {shape}.")


def drop_tied_head(tensors: dict[str, np.ndarray], config: LlamaConfig, where: object) -> None:
    """Remove the copy of a tied embedding that some exports have. Raises KodaError where it is no copy."""
    head = tensors.pop("lm_head.weight", None) if config.tie_word_embeddings else None
    if head is not None and not np.array_equal(head, tensors["model.embed_tokens.weight"]):
        raise KodaError(
            f"{where}: lm_head.weight differs from model.embed_tokens.weight, and config.json has "
            "tie_word_embeddings = true. Set it to false there to keep that head."
        )


def from_hf(tensors: dict[str, np.ndarray], layers: int) -> dict[str, Any]:
    """The nested dicts of a Llama from transformers' tensors, which it empties; the inverse of `to_hf`."""

    def stacked(name: str) -> np.ndarray:
        return np.stack([tensors.pop(f"model.layers.{number}.{name}") for number in range(layers)])

    blocks: dict[str, Any] = {norm: {"scale": stacked(f"{name}.weight")} for (norm,), name in NORMS.items()}
    for (part, matrix), name in MODULES.items():
        linear = {"kernel": stacked(f"{name}.weight").swapaxes(1, 2)}
        if f"model.layers.0.{name}.bias" in tensors:
            linear["bias"] = stacked(f"{name}.bias")
        blocks.setdefault(part, {})[matrix] = linear
    params = {
        "embedding": tensors["model.embed_tokens.weight"],
        "layers": blocks,
        "norm": {"scale": tensors["model.norm.weight"]},
    }
    if "lm_head.weight" in tensors:
        params["head"] = tensors["lm_head.weight"]
    return params
