"""A model that others trained, as the base of a run."""

from pathlib import Path

import jax
import numpy as np

from model import arrays, weights
from model.data import tokenizer as tokenizers
from model.errors import KodaError
from model.export import gguf_file, tensors
from model.export.formats import hf
from model.figures import CheckpointFigures, PretrainFigures
from model.files import link, sha256


def fingerprint(folder: Path) -> str:
    """The hashes of the files that a model is read from. Raises KodaError where they are not all there."""
    if folder.suffix == ".gguf":
        return sha256(folder)
    return " ".join(map(sha256, [folder / "config.json", *tensors.files(folder)]))


def adopt(source: str, tokenizer: str, out: str) -> PretrainFigures:
    """Write the Llama in `source`, a Hugging Face folder or a GGUF file, to `out`.

    Every number keeps its type; what is quantised becomes float32.

    Raises KodaError for what Koda cannot represent, and where the tokenizer knows tokens that the model does not.
    """
    model = (gguf_file.read if Path(source).suffix == ".gguf" else hf.read)(Path(source))
    for name, array in arrays.flatten(model.params).items():
        if not np.isfinite(array).all():
            raise KodaError(f"{source}: {name} has numbers that are not finite.")
    size = tokenizers.load(tokenizer).size
    if size > model.config.vocab_size:
        raise KodaError(f"{source}: its tokenizer has {size} entries, its embedding {model.config.vocab_size} rows.")
    weights.write(Path(out), model, step=0)
    return PretrainFigures(
        imported=Path(source).name,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(model.params)),
        dtype=model.params["embedding"].dtype.name,
    )


def promote(source: str, out: str) -> CheckpointFigures:
    """Read an adopted model back, every array against its checksum, and link its files to `out`."""
    parameters = 0
    for name, array in arrays.read_parts(Path(source), arrays.facts(Path(source))["arrays"]):
        if not np.isfinite(array).all():
            raise KodaError(f"{source}: {name} has numbers that are not finite.")
        parameters += array.size
    link(Path(source), Path(out))
    return CheckpointFigures(parameters=parameters)
