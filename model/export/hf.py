"""The Hugging Face folder: safetensors and the files that transformers 4 and 5 both read."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from model.config import LlamaConfig
from model.data.chat import TEMPLATE
from model.data.tokenizer import END_OF_TEXT, end_of_text
from model.export.names import to_hf
from model.files import write_json
from model.llama import Llama

# Fields of LlamaConfig that config.json says in another form, or cannot say.
OURS = {"qk_norm", "rope_scaling", "rope_factor", "rope_original_context"}


def write(folder: Path, model: Llama, tokenizer_file: Path, dtype: str) -> None:
    """Write a model and its tokenizer to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    tensors = {name: np.ascontiguousarray(tensor.astype(dtype)) for name, tensor in to_hf(params)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    end = end_of_text(Tokenizer.from_file(str(tokenizer_file)))
    write_json(folder / "config.json", config(model.config, end, dtype))
    write_json(
        folder / "generation_config.json",
        {"_from_model_config": True, "bos_token_id": end, "eos_token_id": end, "pad_token_id": end},
    )
    write_tokenizer(folder, tokenizer_file, model.config.max_position_embeddings)


def config(shape: LlamaConfig, end: int, dtype: str) -> dict[str, Any]:
    """config.json. The rotary base is written three times over: transformers 5 reads `rope_parameters`; transformers 4
    and mlx-lm read `rope_theta`, and without it silently take 10000. Where positions are scaled, likewise."""
    scaling = None
    if shape.rope_scaling != "none":
        original = shape.rope_original_context
        scaling = {"rope_type": shape.rope_scaling, "type": shape.rope_scaling, "factor": shape.rope_factor}
        scaling |= {"original_max_position_embeddings": original} if shape.rope_scaling == "yarn" else {}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{name: value for name, value in shape.to_dict().items() if name not in OURS},
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta, **(scaling or {})},
        "rope_scaling": scaling,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "initializer_range": 0.02,
        "torch_dtype": dtype,
        "dtype": dtype,
        "use_cache": True,
    }


def write_tokenizer(folder: Path, tokenizer_file: Path, context: int) -> None:
    """The tokenizer's files. Written by hand: transformers 5 names a tokenizer class that transformers 4 refuses."""
    shutil.copyfile(tokenizer_file, folder / "tokenizer.json")
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "pad_token": END_OF_TEXT,
            "unk_token": END_OF_TEXT,
            "additional_special_tokens": [],
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": context,
            "chat_template": TEMPLATE,
        },
    )
    write_json(
        folder / "special_tokens_map.json",
        dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), END_OF_TEXT),
    )
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
