"""Safetensors, a tensor at a time, so that a model is never in memory twice.

The format (https://github.com/huggingface/safetensors#format): eight bytes with the length of a JSON header, the header
with each tensor's type, shape and place, and the bytes.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from model.errors import KodaError
from model.files import atomic_write, read_json, write_json

SHARD = 4_000_000_000  # bytes of a file at most: what is lost when a download breaks off
INDEX = "model.safetensors.index.json"
TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}

Named = tuple[str, np.ndarray]


def write(folder: Path, tensors: Sequence[Named], dtype: str, shard: int = SHARD) -> None:
    """Write `tensors` to `folder`, in files of up to `shard` bytes, each as `dtype` (`auto`: as it is)."""
    types = {name: tensor.dtype.name if dtype == "auto" else dtype for name, tensor in tensors}
    sizes = {name: tensor.size * np.dtype(types[name]).itemsize for name, tensor in tensors}
    files: list[list[Named]] = [[]]
    room = shard
    for name, tensor in tensors:
        if files[-1] and sizes[name] > room:
            files.append([])
            room = shard
        files[-1].append((name, tensor))
        room -= sizes[name]
    names = [f"model-{n:05}-of-{len(files):05}.safetensors" for n in range(1, len(files) + 1)]
    if len(files) == 1:
        names = ["model.safetensors"]
    for file, content in zip(names, files, strict=True):
        _write_file(folder / file, content, types)
    if len(files) > 1:
        where = {name: file for file, content in zip(names, files, strict=True) for name, _ in content}
        write_json(folder / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where})


def _write_file(path: Path, tensors: Sequence[Named], types: dict[str, str]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors:
        begin, end = end, end + tensor.size * np.dtype(types[name]).itemsize
        header[name] = {"dtype": TYPES[types[name]], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # what follows is aligned
    with atomic_write(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name, tensor in tensors:
            file.write(np.ascontiguousarray(tensor, types[name]).reshape(-1).view(np.uint8))


def files(folder: Path) -> list[Path]:
    """The safetensors files of a model's folder. Raises KodaError where there are none, or one is missing."""
    if (folder / INDEX).is_file():
        paths = [folder / name for name in sorted(set(read_json(folder / INDEX)["weight_map"].values()))]
    else:
        paths = [folder / "model.safetensors"]
    if missing := [path for path in paths if not path.is_file()]:
        pickled = ", which is pickled and not opened" if list(folder.glob("*.bin")) else ""
        raise KodaError(f"{missing[0]} is not there{pickled}. A model is read from safetensors.")
    return paths


def read(folder: Path) -> Iterator[Named]:
    """Each tensor of a model's folder, in its own type. Raises KodaError for a file that is not whole."""
    for path in files(folder):
        try:
            with safe_open(path, "numpy") as file:
                for name in file.keys():  # noqa: SIM118  (it is no dict)
                    yield name, file.get_tensor(name)
        except SafetensorError as error:
            raise KodaError(f"{path} cannot be read as safetensors: {error}") from None
