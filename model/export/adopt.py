"""A model that others trained, as the base of a run."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from model import arrays, weights
from model.data import tokenizer as tokenizers
from model.errors import KodaError
from model.export import hf, tensors
from model.files import link, sha256


def fingerprint(folder: Path) -> str:
    """The hashes of the files that a model is read from. Raises KodaError where they are not all there."""
    return " ".join(map(sha256, [folder / "config.json", *tensors.files(folder)]))


def adopt(source: str, tokenizer: str, out: str) -> dict[str, Any]:
    """Write the LlamaForCausalLM in the folder `source` to `out`, every number in the type it is stored in.

    Raises KodaError for what Koda cannot represent, and where the tokenizer knows tokens that the model does not.
    """
    model = hf.read(Path(source))
    for name, array in arrays.flatten(model.params).items():
        if not np.isfinite(array).all():
            raise KodaError(f"{source}: {name} holds numbers that are not finite.")
    size = tokenizers.load(tokenizer).get_vocab_size()
    if size > model.config.vocab_size:
        raise KodaError(f"{source}: its tokenizer has {size} entries, its embedding {model.config.vocab_size} rows.")
    weights.write(Path(out), model, step=0)
    return {
        "imported": Path(source).name,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.params)),
        "dtype": model.params["embedding"].dtype.name,
    }


def promote(source: str, out: str) -> dict[str, Any]:
    """Read an adopted model back, every array against its checksum, and let its files stand in `out` too."""
    parameters = 0
    for name, array in arrays.read_parts(Path(source), arrays.facts(Path(source))["arrays"]):
        if not np.isfinite(array).all():
            raise KodaError(f"{source}: {name} holds numbers that are not finite.")
        parameters += array.size
    link(Path(source), Path(out))
    return {"parameters": parameters}
