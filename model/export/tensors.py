"""Safetensors, a tensor at a time, so that a model is never in memory twice.

The format (https://github.com/huggingface/safetensors#format): eight bytes with the length of a JSON header, the header
with each tensor's type, shape and place, and the bytes.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from model.errors import KodaError
from model.files import atomic_write, read_field, read_object, write_json

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
    """The safetensors files of a model's folder. Raises KodaError where there are none, or one is missing.

    As in transformers, an index is read where there is no model.safetensors: it may be older than that.
    """
    paths = [folder / "model.safetensors"]
    if not paths[0].is_file() and (folder / INDEX).is_file():
        listed = read_field(read_object(folder / INDEX), "weight_map", dict, folder / INDEX)
        names = {read_field(listed, tensor, str, f"{folder / INDEX}: weight_map") for tensor in listed}
        paths = [folder / name for name in sorted(names)]
    if missing := [path for path in paths if not path.is_file()]:
        pickled = ", which is pickled and not opened" if list(folder.glob("*.bin")) else ""
        raise KodaError(f"{missing[0]} is not there{pickled}. A model is read from safetensors.")
    return paths


def visible(folder: Path, pattern: str = "*.safetensors") -> list[Path]:
    """The files of a folder by their names, without those that macOS and notebooks write beside them: `._x`, `.x/`."""
    found = [path for path in sorted(folder.glob(pattern)) if path.is_file()]
    return [path for path in found if not path.relative_to(folder).parts[0].startswith(".")]


def headers(folder: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """The shape and the type (`F32`) of each tensor of a model's folder."""
    facts: dict[str, tuple[tuple[int, ...], str]] = {}
    for path in files(folder):
        with whole(path), safe_open(path, "numpy") as file:
            for name in file.keys():  # noqa: SIM118  (it is no dict)
                part = file.get_slice(name)
                facts[name] = tuple(part.get_shape()), part.get_dtype()
    return facts


def read(folder: Path) -> Iterator[Named]:
    """Each tensor of a model's folder, in its own type. Raises KodaError for a file that is not whole."""
    for path in files(folder):
        with whole(path), safe_open(path, "numpy") as file:
            for name in file.keys():  # noqa: SIM118  (it is no dict)
                yield name, file.get_tensor(name)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[None]:
    """Raises KodaError, with the file's path, for one that cannot be read."""
    try:
        yield
    except (SafetensorError, OSError, RuntimeError) as error:  # mlx raises the last
        raise KodaError(f"{path} cannot be read as safetensors: {error}") from None
