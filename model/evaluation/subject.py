"""The model that is evaluated, wherever it lies: Koda's weights, a checkpoint, a Hugging Face folder, GGUF, MLX.

All of them are computed in JAX, with the numbers that the file holds: what quantisation cost is seen, and what the
runtime that usually opens the file does otherwise is not (the convert stage compares that).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer

from model import arrays, weights
from model.config import LlamaConfig
from model.data import tokenizer as tokenizers
from model.errors import KodaError
from model.export import gguf, gguf_tokenizer, hf, mlx
from model.files import read_json
from model.llama import Llama
from model.weights import Stored

PARAMS = "params/"  # what a checkpoint calls the weights in it


class Subject(NamedTuple):
    """A model that can be asked, and the tokenizer that it is asked with."""

    name: str
    model: Llama
    tokenizer: Tokenizer
    prefix: int  # the token that stands for an empty context

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids, with what the tokenizer itself puts around a text."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=True)]


def open_model(path: Path, tokenizer_file: Path | None = None) -> Subject:
    """The model at `path`; Koda's own weights come with no tokenizer, so that they need `tokenizer_file`.

    Raises KodaError for what is no model, and for a tokenizer that knows more tokens than the model has.
    """
    if path.suffix == ".gguf" and path.is_file():
        reader = gguf.opened(path)
        tokenizer = gguf_tokenizer.read(reader, path)
        return _subject(path, gguf.stored(reader, path), tokenizer, tokenizers.end_of_text(tokenizer))
    if (path / arrays.COMMIT).is_file():
        if tokenizer_file is None:
            raise KodaError(f"{path} holds weights without a tokenizer, and lies in no run that has one.")
        tokenizer = tokenizers.load(str(tokenizer_file))
        return _subject(path, stored_weights(path), tokenizer, tokenizers.end_of_text(tokenizer))
    if not (path / "config.json").is_file():
        raise KodaError(
            f"{path} is no model: neither a run's weights, nor a folder with config.json, nor a .gguf file."
        )
    if not (path / "tokenizer.json").is_file():
        raise KodaError(f"{path} has no tokenizer.json.")
    raw = read_json(path / "config.json")
    stored = mlx.read(path) if "quantization" in raw or _written_by_mlx(path) else hf.read(path)
    begin, end = raw.get("bos_token_id"), raw.get("eos_token_id")
    prefix = begin if begin is not None else end[0] if isinstance(end, list) else end
    return _subject(path, stored, Tokenizer.from_file(str(path / "tokenizer.json")), int(prefix or 0))


def stored_weights(path: Path) -> Stored:
    """The weights in a folder of them, or of a training's checkpoint, of which the optimizer's state is not read."""
    described = arrays.facts(path)["arrays"]
    parts = {array["part"] for name, array in described.items() if name.startswith(PARAMS)}
    if not parts:
        return weights.read(path)
    config = LlamaConfig(**read_json(path.parents[1] / "job.json")["model"])
    wanted = {name: array for name, array in described.items() if array["part"] in parts}
    read = arrays.read_parts(path, wanted)
    named = {name.removeprefix(PARAMS): array for name, array in read if name.startswith(PARAMS)}
    return Stored(config, weights.nested(config, named))


def _written_by_mlx(path: Path) -> bool:
    from safetensors import safe_open

    first = next(iter(sorted(path.glob("*.safetensors"))), None)
    if first is None:
        return False
    with safe_open(first, "numpy") as file:
        return (file.metadata() or {}).get("format") == "mlx"


def _subject(path: Path, stored: Stored, tokenizer: Tokenizer, prefix: int) -> Subject:
    size, rows = tokenizer.get_vocab_size(), stored.config.vocab_size
    if size > rows:
        raise KodaError(f"{path}: its tokenizer has {size} entries, the model {rows}: they do not belong together.")
    return Subject(path.name, weights.network(stored), tokenizer, prefix)
