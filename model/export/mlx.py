"""The MLX folders, written by mlx-lm from the Hugging Face folder, and read back."""

import shutil
from pathlib import Path

import numpy as np

from model.export.hf_config import from_hf_config
from model.export.names import from_hf, shapes
from model.files import read_json
from model.weights import Stored

GROUP = 64  # weights that share a scale
BITS = {"fp16": 16, "8bit": 8, "4bit": 4}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def write(folder: Path, hf_folder: Path, label: str) -> None:
    """Write one MLX folder (one of BITS): fp16, or quantised in groups of 64."""
    import mlx_lm  # here, because it imports transformers, which takes seconds

    bits = BITS[label]
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    mlx_lm.convert(str(hf_folder), str(folder), quantize=bits < 16, q_bits=bits, q_group_size=GROUP, dtype="float16")
    for name in TOKENIZER_FILES:  # mlx-lm writes its own, which transformers 4 refuses
        shutil.copyfile(hf_folder / name, folder / name)


def read(folder: Path) -> Stored:
    """The model in an MLX folder, what is quantised as float32. Raises KodaError for what is not Koda's network."""
    import mlx.core as mx

    raw = read_json(folder / "config.json")
    how = raw.pop("quantization", None)
    raw.pop("quantization_config", None)
    shape = from_hf_config(raw, str(folder / "config.json"))
    parts: dict[str, mx.array] = {}
    for path in sorted(folder.glob("*.safetensors")):
        parts |= mx.load(str(path))  # type: ignore[arg-type]
    found: dict[str, np.ndarray] = {}
    for name in shapes(shape):
        module = name.removesuffix(".weight")
        array = parts.pop(name)
        if f"{module}.scales" in parts:
            scales, biases = (parts.pop(f"{module}.{part}").astype(mx.float32) for part in ("scales", "biases"))
            array = mx.dequantize(array, scales, biases, group_size=how["group_size"], bits=how["bits"])
        found[name] = np.array(array.astype(mx.float32) if array.dtype == mx.bfloat16 else array)
    return Stored(shape, from_hf(found, shape.num_hidden_layers))
