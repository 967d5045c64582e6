"""The model that is evaluated, in any form: Koda's weights, a checkpoint, a Hugging Face folder, GGUF, MLX.

All forms are computed in JAX, with the numbers in the file. The figures show the cost of quantisation. They do not show
how the file's usual runtime differs from JAX, which the convert stage measures.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from model import arrays, weights
from model.config import LlamaConfig
from model.data import gguf_tokenizer
from model.data import tokenizer as tokenizers
from model.data.vocabulary import Vocabulary
from model.errors import KodaError
from model.export import gguf_file, tensors
from model.export.formats import hf, mlx
from model.files import read_json, read_object
from model.llama import Llama
from model.stored import Stored
from model.training.records import JOB

PARAMS = "params/"  # the prefix of the weights' names in a checkpoint


class Subject(NamedTuple):
    """A model under evaluation, and its vocabulary."""

    name: str
    model: Llama
    vocabulary: Vocabulary

    @property
    def prefix(self) -> int:
        """The token in place of an empty context."""
        return self.vocabulary.special.prefix

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids, with the special tokens that the tokenizer itself adds around a text."""
        return [encoding.ids for encoding in self.vocabulary.tokenizer.encode_batch_fast([*texts])]


def open_model(path: Path, tokenizer_file: Path | None = None) -> Subject:
    """The model at `path`; Koda's own weights have no tokenizer beside them and require `tokenizer_file`.

    Raises KodaError for a path that is not a model, and for a tokenizer with more tokens than the model.
    """
    if path.suffix == ".gguf" and path.is_file():
        reader = gguf_file.opened(path)
        return _subject(path, gguf_file.stored(reader, path), gguf_tokenizer.read(reader, path))
    if (path / arrays.COMMIT).is_file():
        if tokenizer_file is None:
            raise KodaError(f"{path} has weights without a tokenizer, and is not in a run that has one.")
        return _subject(path, stored_weights(path), tokenizers.load(str(tokenizer_file)))
    if not (path / "config.json").is_file():
        raise KodaError(
            f"{path} is not a model: neither a run's weights, nor a folder with config.json, nor a .gguf file."
        )
    if not (path / "tokenizer.json").is_file():
        raise KodaError(f"{path} has no tokenizer.json.")
    raw = read_object(path / "config.json")
    stored = mlx.read(path) if "quantization" in raw or written_by_mlx(path) else hf.read(path)
    return _subject(path, stored, tokenizers.load(str(path)))


def stored_weights(path: Path) -> Stored:
    """The weights in a folder of weights, or in a training's checkpoint, without reading its optimizer's state."""
    described = arrays.facts(path)["arrays"]
    parts = {array["part"] for name, array in described.items() if name.startswith(PARAMS)}
    if not parts:
        return weights.read(path)
    config = LlamaConfig(**read_json(path.parents[1] / JOB)["model"])
    needed = {name: array for name, array in described.items() if array["part"] in parts}
    pairs = arrays.read_parts(path, needed)
    named = {name.removeprefix(PARAMS): array for name, array in pairs if name.startswith(PARAMS)}
    return Stored(config, weights.nested(config, named))


def written_by_mlx(path: Path) -> bool:
    from safetensors import safe_open

    first = next(iter(tensors.visible(path)), None)
    if first is None:
        return False
    with tensors.whole(first), safe_open(first, "numpy") as file:
        return (file.metadata() or {}).get("format") == "mlx"


def _subject(path: Path, stored: Stored, vocabulary: Vocabulary) -> Subject:
    size, rows = vocabulary.size, stored.config.vocab_size
    if size > rows:
        raise KodaError(f"{path}: its tokenizer has {size} entries, the model {rows}: they do not belong together.")
    return Subject(path.name, weights.network(stored), vocabulary)
