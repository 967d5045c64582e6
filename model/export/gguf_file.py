"""GGUF for llama.cpp and what is built on it, written and read by gguf-py
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGML_QUANT_VERSION, GGUFReader, GGUFWriter, LlamaFileType, ReaderTensor, RopeScalingType, quants
from gguf import GGMLQuantizationType as Type

from model.config import LlamaConfig
from model.data import chat, gguf_tokenizer, hub
from model.data.vocabulary import Vocabulary
from model.errors import KodaError
from model.export import kquants
from model.export.about import About
from model.export.names import check_tensors, from_hf, shapes, to_hf
from model.files import atomic_write, in_file, read_field
from model.rope import frequencies
from model.stored import Stored

ARCHITECTURE = "llama"
TYPES = {
    "F32": (Type.F32, LlamaFileType.ALL_F32),
    "BF16": (Type.BF16, LlamaFileType.MOSTLY_BF16),
    "F16": (Type.F16, LlamaFileType.MOSTLY_F16),
    "Q8_0": (Type.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
HALF = {"float16": Type.F16, "bfloat16": Type.BF16}
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
    "rope_freqs": "rope_freqs",
}
# Llama 3's scaling is no metadata, but a tensor: the number that each pair's angle is divided by, `[head_dim / 2]`.
ROPE_FREQS = "rope_freqs.weight"
IMPORTANCE = "quantize.imatrix.entries_count"  # what a file states that an importance matrix was used for
# The numbers that Meta's models have, which the tensor alone does not tell.
LLAMA3: dict[str, Any] = {"rope_original_context": 8192, "rope_low_freq_factor": 1.0, "rope_high_freq_factor": 4.0}


def write(
    path: Path,
    model: Stored,
    vocabulary: Vocabulary,
    kind: str,
    about: About,
    importance: dict[str, np.ndarray] | None = None,
) -> None:
    """Write one GGUF file of this kind (of TYPES or kquants.KINDS), a tensor at a time.

    `importance`, for K-quants: of the columns of each matrix, `[inputs]`, by transformers' name.
    """
    importance = importance if importance and kind in kquants.KINDS else {}
    with atomic_write(path, "wb") as beside:
        writer = GGUFWriter(beside.name, ARCHITECTURE)
        writer.add_type(gguf.GGUFType.MODEL)
        metadata(about, model.config).set_gguf_meta_model(writer)
        writer.add_file_type(LlamaFileType[f"MOSTLY_{kind}"] if kind in kquants.KINDS else TYPES[kind][1])
        writer.add_quantization_version(GGML_QUANT_VERSION)
        if importance:
            writer.add_uint32(IMPORTANCE, len(importance))
        _add_shape(writer, model.config)
        gguf_tokenizer.add(writer, vocabulary, model.config.vocab_size, chat.template(vocabulary))
        tensors = list(to_hf(model.params))
        if model.config.rope_scaling == "llama3":
            tensors.append((ROPE_FREQS, slowdown(model.config)))
        types = {name: _tensor_type(kind, name, tensor, model.config) for name, tensor in tensors}
        for name, tensor in tensors:
            stored = quants.quant_shape_to_byte_shape(tensor.shape, types[name])
            size = int(np.prod(stored))
            writer.add_tensor_info(gguf_name(name), stored, np.dtype(np.uint8), size, raw_dtype=types[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in tensors:
            rows = np.ascontiguousarray(_turned(name, tensor, model.config, interleave), np.float32)
            if kind in kquants.KINDS and tensor.ndim > 1:
                writer.write_tensor_data(kquants.quantise(rows, types[name].name, importance.get(name)))
            else:
                writer.write_tensor_data(quants.quantize(rows, types[name]))
        writer.close()


def _tensor_type(kind: str, name: str, tensor: np.ndarray, shape: LlamaConfig) -> Type:
    if tensor.ndim == 1:
        return Type.F32
    if kind not in kquants.KINDS:
        return TYPES[kind][0]
    layers, tied = shape.num_hidden_layers, shape.tie_word_embeddings
    return Type[kquants.tensor_type(kind, gguf_name(name), tensor.shape[1], layers, tied)]


def read(path: Path) -> Stored:
    """The model in a GGUF file, what is quantised as float32. Raises KodaError for what is not Koda's network."""
    return stored(opened(path), path)


def stored(reader: GGUFReader, path: Path) -> Stored:
    """The same of a file that is open already: with a large vocabulary, opening one takes seconds."""
    shape = read_shape(reader, path)
    numbers = {tensor.name: tensor for tensor in reader.tensors}
    tensors = {name: _turned(name, _numbers(numbers[gguf_name(name)], path), shape, halves) for name in shapes(shape)}
    return Stored(shape, from_hf(tensors, shape.num_hidden_layers))


def matrix_type(reader: GGUFReader) -> str:
    """The type of all its matrices, if that is float16 or bfloat16; else float32, which the others become."""
    types = {tensor.tensor_type for tensor in reader.tensors if len(tensor.shape) > 1}
    return next((name for name, type_ in HALF.items() if types == {type_}), "float32")


def _numbers(tensor: ReaderTensor, path: Path) -> np.ndarray:
    if tensor.tensor_type in (Type.F32, Type.F16):
        return np.asarray(tensor.data)
    try:
        return quants.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError:
        raise KodaError(
            f"{path}: {tensor.name} is {tensor.tensor_type.name}, which gguf-py does not dequantise. Koda reads F32, "
            "F16, BF16, Q4_0 to Q8_0, the K and most of the IQ types."
        ) from None


def opened(path: Path) -> GGUFReader:
    """The file, for reading. Raises KodaError for one that is no GGUF of a Llama."""
    try:
        reader = GGUFReader(path)
    except (ValueError, OSError, IndexError) as error:
        raise KodaError(f"{path} cannot be read as GGUF: {error}") from None
    if (kind := value(reader, "general.architecture")) != ARCHITECTURE:
        raise KodaError(f"{path}: the model's architecture is {kind!r}; Koda reads {ARCHITECTURE!r}.")
    return reader


def value(reader: GGUFReader, key: str, default: Any = None) -> Any:
    """A field of the file's metadata."""
    field = reader.get_field(key)
    return default if field is None else field.contents()


def metadata(about: About, shape: LlamaConfig) -> gguf.Metadata:
    """What a file states about itself, as gguf-py derives it from a model's card: the parts of the model's name, its
    size, and what it was made of."""
    _, _, base, finetune, version, size = gguf.Metadata.get_model_id_components(about.name, shape.parameters)
    if base is None:  # a name of no known parts
        base, finetune, version, size = about.name, None, None, None
    own = gguf.Metadata(
        name=gguf.Metadata.id_to_title(about.name),
        basename=base,
        finetune=finetune or about.finetune or None,
        version=version,
        size_label=size or gguf.size_label(shape.parameters, 0, 0, 0),
        author=about.author or None,
        quantized_by=about.author or None,
        license=about.license or None,
        url=about.url or None,
        sampling_temp=about.temperature,
    )
    stated = {
        "base_model": about.base_model,
        "datasets": [
            hub.named(name).name if name.startswith(hub.PREFIX) else {"name": name} for name in about.datasets
        ],
        "tags": ["koda"],
        "pipeline_tag": "text-generation",
        "language": [*about.languages],
    }
    return gguf.Metadata.apply_metadata_heuristic(own, {key: value for key, value in stated.items() if value})


def file_name(stated: gguf.Metadata, kind: str) -> str:
    """`tiny-1.3M-Chat-Q8_0.gguf`: by the naming convention of GGUF files."""
    parts = (stated.name, stated.basename, stated.finetune, stated.version, stated.size_label)
    return f"{gguf.naming_convention(*parts, kind)}.gguf"


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
    if shape.rope_scaling in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(shape.rope_scaling))
        writer.add_rope_scaling_factor(shape.rope_factor)
        writer.add_rope_scaling_orig_ctx_len(shape.rope_original_context)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)


def read_shape(reader: GGUFReader, path: Path) -> LlamaConfig:
    """The shape that a file's metadata describes. Missing numbers are those that llama.cpp assumes.

    Raises KodaError where its tensors are not of this shape.
    """
    metadata = {name: value(reader, name) for name in reader.fields if name.startswith(f"{ARCHITECTURE}.")}

    def of(key: str, kind: type, default: Any = ...) -> Any:
        return read_field(metadata, f"{ARCHITECTURE}.{key}", kind, path, default)

    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if gguf_name("model.embed_tokens.weight") not in tensors:
        raise KodaError(f"{path}: {gguf_name('model.embed_tokens.weight')} is missing.")
    scaling = of("rope.scaling.type", str, "none")
    if scaling not in ("none", "linear", "yarn"):
        raise KodaError(f"{path}: rope scaling of kind {scaling!r} is not known to Koda.")
    width, heads = of("embedding_length", int), of("attention.head_count", int)
    size = of("attention.key_length", int, width // heads)
    if of("attention.value_length", int, size) != size or of("rope.dimension_count", int, size) != size:
        raise KodaError(f"{path}: keys, values and rotary positions have different sizes, which Koda's network cannot.")
    fields = {
        "vocab_size": _shape(tensors[gguf_name("model.embed_tokens.weight")])[0],
        "hidden_size": width,
        "num_hidden_layers": of("block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": of("attention.head_count_kv", int, heads),
        "intermediate_size": of("feed_forward_length", int),
        "max_position_embeddings": of("context_length", int),
        "head_dim": size,
        "attention_bias": gguf_name("model.layers.0.self_attn.q_proj.bias") in tensors,
        "mlp_bias": gguf_name("model.layers.0.mlp.up_proj.bias") in tensors,
        "rope_theta": _float(of("rope.freq_base", float, 10000.0)),
        "rope_scaling": scaling,
        "rope_factor": _float(of("rope.scaling.factor", float, 1.0)),
        "rope_original_context": of("rope.scaling.original_context_length", int, 0),
        "rms_norm_eps": _float(of("attention.layer_norm_rms_epsilon", float)),
        "tie_word_embeddings": gguf_name("lm_head.weight") not in tensors,
    }
    with in_file(path):
        shape = LlamaConfig(**fields)
    if ROPE_FREQS in tensors:
        stored_P = _numbers(tensors.pop(ROPE_FREQS), path)
        shape = replace(shape, rope_scaling="llama3", rope_factor=_float(stored_P.max()), **LLAMA3)
        expected_P = slowdown(shape)
        same = stored_P.shape == expected_P.shape and np.allclose(stored_P, expected_P, rtol=1e-4)
        if scaling != "none" or not same:
            raise KodaError(f"{path}: {ROPE_FREQS} does not have the numbers of Llama 3's rope scaling.")
    check_tensors({name: _shape(tensor) for name, tensor in tensors.items()}, shape, path, "its metadata", gguf_name)
    return shape


def _shape(tensor: ReaderTensor) -> tuple[int, ...]:
    """A tensor's shape in transformers' order of axes."""
    return tuple(int(length) for length in reversed(tensor.shape))


def slowdown(shape: LlamaConfig) -> np.ndarray:
    """How many times slower each rotary pair turns than without scaling: `[head_dim / 2]`, float32."""
    plain_P = frequencies(replace(shape, rope_scaling="none"))
    return np.asarray(plain_P / frequencies(shape), np.float32)


def _float(number: float) -> float:
    """The shortest number that float32 rounds to `number`: 1e-5, and not 9.999999747378752e-06."""
    return float(str(np.float32(number)))


def _turned(name: str, rows: np.ndarray, shape: LlamaConfig, turn: Any) -> np.ndarray:
    """The rows of queries and keys in the order that `turn` puts them in; any other tensor as it is."""
    if ".q_proj." in name:
        return turn(rows, shape.num_attention_heads)
    if ".k_proj." in name:
        return turn(rows, shape.num_key_value_heads)
    return rows


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rotary pairs from (i, i + A/2), transformers' order, to (2i, 2i + 1), llama.cpp's; `[outputs, …]`."""
    return rows.reshape(heads, 2, len(rows) // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of `interleave`."""
    return rows.reshape(heads, len(rows) // heads // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def gguf_name(hf_name: str) -> str:
    """`model.layers.3.self_attn.q_proj.weight` → `blk.3.attn_q.weight`."""
    module, kind = hf_name.rsplit(".", 1)
    if module.startswith("model.layers."):
        number, inner = module.removeprefix("model.layers.").split(".", 1)
        return f"blk.{number}.{NAMES[inner]}.{kind}"
    return f"{NAMES[module]}.{kind}"
