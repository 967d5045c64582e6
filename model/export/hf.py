"""The Hugging Face folder: safetensors and the files that transformers 4 and 5 both read."""

import shutil
from pathlib import Path

from tokenizers import Tokenizer

from model.data.chat import TEMPLATE
from model.data.tokenizer import END_OF_TEXT, end_of_text
from model.errors import KodaError
from model.export import tensors
from model.export.hf_config import from_hf_config, to_hf_config
from model.export.names import from_hf, shapes, to_hf
from model.files import read_json, write_json
from model.weights import Stored


def write(folder: Path, model: Stored, tokenizer_file: Path, dtype: str, shard: int = tensors.SHARD) -> None:
    """Write a model and its tokenizer to `folder`; `dtype` is a number type or `auto`, the one it is stored in."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors.write(folder, list(to_hf(model.params)), dtype, shard)
    end = end_of_text(Tokenizer.from_file(str(tokenizer_file)))
    stored = model.params["embedding"].dtype.name
    write_json(folder / "config.json", to_hf_config(model.config, end, stored if dtype == "auto" else dtype))
    write_json(
        folder / "generation_config.json",
        {"_from_model_config": True, "bos_token_id": end, "eos_token_id": end, "pad_token_id": end},
    )
    write_tokenizer(folder, tokenizer_file, model.config.max_position_embeddings)


def read(folder: Path) -> Stored:
    """Any LlamaForCausalLM: one file or several, tied or not, float32, float16 or bfloat16, as stored.

    Raises KodaError, by name, for what Koda cannot represent, and for tensors that are missing or of another shape.
    """
    if not (folder / "config.json").is_file():
        raise KodaError(f"{folder} is no Hugging Face model: it has no config.json.")
    shape = from_hf_config(read_json(folder / "config.json"), str(folder / "config.json"))
    wanted = shapes(shape)
    found = {name: tensor for name, tensor in tensors.read(folder) if name in wanted or _matters(name)}
    if unknown := found.keys() - wanted.keys():
        raise KodaError(f"{folder}: {sorted(unknown)[0]} has no place in a LlamaForCausalLM as Koda computes it.")
    for name, expected in wanted.items():
        if name not in found:
            raise KodaError(f"{folder}: {name} is missing.")
        if found[name].shape != expected:
            raise KodaError(f"{folder}: {name} is {found[name].shape}, config.json says {expected}.")
        if found[name].dtype.name not in tensors.TYPES:
            raise KodaError(f"{folder}: {name} is {found[name].dtype}; Koda reads {', '.join(tensors.TYPES)}.")
    return Stored(shape, from_hf(found, shape.num_hidden_layers))


def _matters(name: str) -> bool:
    """Old exports carry the rotary frequencies, and some a copy of a tied head; neither says anything new."""
    return not name.endswith("rotary_emb.inv_freq") and name != "lm_head.weight"


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
            "model_input_names": ["input_ids", "attention_mask"],  # transformers 4 would add token_type_ids
            "chat_template": TEMPLATE,
        },
    )
    write_json(
        folder / "special_tokens_map.json",
        dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), END_OF_TEXT),
    )
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
