"""GGUF for llama.cpp and what is built on it, written by gguf-py
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)."""

import json
from pathlib import Path

import numpy as np
from flax import nnx
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, RopeScalingType, TokenType, quants

from model.config import LlamaConfig
from model.data.chat import TEMPLATE
from model.data.tokenizer import END_OF_TEXT
from model.export.names import to_hf
from model.llama import Llama

TYPES = {"F32": LlamaFileType.ALL_F32, "F16": LlamaFileType.MOSTLY_F16, "Q8_0": LlamaFileType.MOSTLY_Q8_0}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write(path: Path, model: Llama, tokenizer_file: Path, kind: str, name: str) -> None:
    """Write one GGUF file of the given kind, F32, F16 or Q8_0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_file_type(TYPES[kind])
    _add_shape(writer, model.config)
    _add_tokenizer(writer, tokenizer_file)
    for hf_name, tensor in to_hf(nnx.to_pure_dict(nnx.state(model, nnx.Param))):
        _add_tensor(writer, hf_name, tensor.astype(np.float32), kind, model.config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: GGUFWriter, shape: LlamaConfig) -> None:
    writer.add_vocab_size(shape.vocab_size)
    writer.add_context_length(shape.max_position_embeddings)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_attention_heads)
    writer.add_head_count_kv(shape.num_key_value_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)  # llama.cpp silently takes 10000 without it
    if shape.rope_scaling != "none":
        writer.add_rope_scaling_type(RopeScalingType(shape.rope_scaling))
        writer.add_rope_scaling_factor(shape.rope_factor)
        writer.add_rope_scaling_orig_ctx_len(shape.rope_original_context)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)


def _add_tokenizer(writer: GGUFWriter, file: Path) -> None:
    """GPT-2's byte-level BPE, by name: any other pre-tokenizer splits about a tenth of strings differently."""
    raw = json.loads(file.read_text(encoding="utf-8"))
    special = {token["content"] for token in raw["added_tokens"] if token["special"]}
    vocabulary = {**raw["model"]["vocab"], **{token["content"]: token["id"] for token in raw["added_tokens"]}}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if token in special else TokenType.NORMAL for token in tokens])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in raw["model"]["merges"]])
    end = vocabulary[END_OF_TEXT]
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_pad_token_id(end)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(TEMPLATE)


def _add_tensor(writer: GGUFWriter, hf_name: str, tensor: np.ndarray, kind: str, shape: LlamaConfig) -> None:
    if hf_name.endswith("q_proj.weight"):
        tensor = interleave(tensor, shape.num_attention_heads)
    if hf_name.endswith("k_proj.weight"):
        tensor = interleave(tensor, shape.num_key_value_heads)
    name = gguf_name(hf_name)
    if tensor.ndim == 1 or kind == "F32":
        writer.add_tensor(name, np.ascontiguousarray(tensor))
    elif kind == "F16":
        writer.add_tensor(name, np.ascontiguousarray(tensor.astype(np.float16)))
    else:
        quantized = quants.quantize(np.ascontiguousarray(tensor), GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, quantized, raw_dtype=GGMLQuantizationType.Q8_0)


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rotary pairs from (i, i + A/2), transformers' order, to (2i, 2i + 1), llama.cpp's; `[outputs, inputs]`."""
    outputs, inputs = rows.shape
    return rows.reshape(heads, 2, outputs // heads // 2, inputs).swapaxes(1, 2).reshape(outputs, inputs)


def gguf_name(hf_name: str) -> str:
    """`model.layers.3.self_attn.q_proj.weight` → `blk.3.attn_q.weight`."""
    module = hf_name.removesuffix(".weight")
    if module.startswith("model.layers."):
        number, inner = module.removeprefix("model.layers.").split(".", 1)
        return f"blk.{number}.{NAMES[inner]}.weight"
    return f"{NAMES[module]}.weight"
