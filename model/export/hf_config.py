"""config.json of a LlamaForCausalLM, and what Koda makes of one that others wrote."""

from typing import Any

from model.config import LlamaConfig
from model.errors import KodaError
from model.files import in_file, read_field

# Fields that config.json has in another form, or cannot have.
OURS = {
    "qk_norm",
    "rope_scaling",
    "rope_factor",
    "rope_original_context",
    "rope_low_freq_factor",
    "rope_high_freq_factor",
}
# What transformers assumes where config.json has no value.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}
# Fields that change what the network computes, and the one value that Koda computes.
FIXED: dict[str, Any] = {"hidden_act": "silu", "partial_rotary_factor": 1.0}
# Under which names a way of scaling positions has its numbers; any other number must be the usual one.
SCALING = {
    "linear": {"factor"},
    "yarn": {"factor", "original_max_position_embeddings"},
    "llama3": {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"},
}
USUAL: dict[str, Any] = {"beta_fast": 32, "beta_slow": 1, "attention_factor": None, "truncate": True}


def to_hf_config(shape: LlamaConfig, dtype: str) -> dict[str, Any]:
    """config.json, without its special tokens.

    The rotary base is written three times over: transformers 5 reads `rope_parameters`; transformers 4 and mlx-lm read
    `rope_theta`, and without it silently take 10000. Where positions are scaled, likewise.
    """
    scaling = None
    if shape.rope_scaling != "none":
        original = shape.rope_original_context
        numbers = {
            "factor": shape.rope_factor,
            "original_max_position_embeddings": original,
            "low_freq_factor": shape.rope_low_freq_factor,
            "high_freq_factor": shape.rope_high_freq_factor,
        }
        kept = {name: number for name, number in numbers.items() if name in SCALING[shape.rope_scaling]}
        scaling = {"rope_type": shape.rope_scaling, "type": shape.rope_scaling, **kept}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{name: value for name, value in shape.to_dict().items() if name not in OURS},
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta, **(scaling or {})},
        "rope_scaling": scaling,
        "initializer_range": 0.02,
        "torch_dtype": dtype,
        "dtype": dtype,
        "use_cache": True,
    }


def from_hf_config(raw: dict[str, Any], where: str) -> LlamaConfig:
    """The shape that a config.json describes; `where` is what the errors call it.

    Raises KodaError, by the field's name, for what Koda's network cannot represent.
    """
    named = read_field(raw, "architectures", list, where, None) or []
    if raw.get("model_type") != "llama" or (named and "LlamaForCausalLM" not in named):
        kind = "/".join(map(str, [raw.get("model_type"), *named]))
        raise KodaError(f"{where}: the model is {kind}; Koda reads LlamaForCausalLM.")
    if "quantization_config" in raw or "quantization" in raw:
        raise KodaError(f"{where}: its weights are quantised; Koda reads float32, float16 and bfloat16.")
    for name, only in FIXED.items():
        if raw.get(name, only) != only:
            raise KodaError(f"{where}: {name} = {raw[name]!r} is not in Koda's network, which has {name} = {only!r}.")
    fields = {name: read_field(raw, name, type(default), where, default) for name, default in DEFAULTS.items()}
    fields |= _rope(raw, fields["max_position_embeddings"], where)
    kv_heads, size = (read_field(raw, name, int, where, None) for name in ("num_key_value_heads", "head_dim"))
    with in_file(where):
        return LlamaConfig(**fields, num_key_value_heads=kv_heads or fields["num_attention_heads"], head_dim=size or 0)


def _rope(raw: dict[str, Any], context: int, where: str) -> dict[str, Any]:
    """The rotary part of the shape: transformers 4 and 5 write it under different names."""
    older, newer = (read_field(raw, name, dict, where, None) or {} for name in ("rope_scaling", "rope_parameters"))
    bases = {read_field(part, "rope_theta", float, where, None) for part in (raw, older, newer)} - {None}
    if len(bases) > 1:
        raise KodaError(f"{where}: rope_theta is {' and '.join(map(str, sorted(bases)))}; rope_parameters must agree.")
    theta = float(*bases or [10000.0])
    written = dict(older or newer)
    written.pop("rope_theta", None)
    kind = written.pop("rope_type", None) or written.get("type") or "default"
    written.pop("type", None)
    if kind == "default":
        return {"rope_theta": theta}
    if str(kind) not in SCALING:
        raise KodaError(f"{where}: rope scaling of kind {kind!r} is not known to Koda; it knows {', '.join(SCALING)}.")
    for name, value in written.items():
        if name not in SCALING[kind] and value != USUAL.get(name):
            raise KodaError(f"{where}: rope scaling with {name} = {value!r} is not known to Koda.")
    original, where = "original_max_position_embeddings", f"{where}: rope scaling of kind {kind!r}"
    older_context, newer_context = (read_field(part, original, int, where, None) for part in (written, raw))
    factors = {name: float(read_field(written, name, float, where)) for name in sorted(SCALING[kind] - {original})}
    return {
        "rope_theta": theta,
        "rope_scaling": kind,
        "rope_original_context": int(older_context or newer_context or context / factors["factor"]),
        **{f"rope_{name}": number for name, number in factors.items()},
    }
