"""Where does an exported file first differ from the weights it was made of?"""

import math
from dataclasses import fields
from pathlib import Path

import numpy as np

from model.config import LlamaConfig
from model.errors import KodaError
from model.export.formats import FORMATS
from model.export.names import to_hf
from model.stored import Stored

FURTHER = "rounded further"
# What rounding alone leaves of a tensor's relative error: half a step of 16 bits, of 8 bits in blocks, of 4 in groups.
ROUNDING = {
    1e-6: "the same",
    3e-3: "rounded to 16 bits",
    1.5e-2: "rounded to 8 bits",
    0.25: FURTHER,
}
WRONG = max(ROUNDING)  # beyond it a tensor is not rounded but another one


def first_difference(format_: str, path: Path, model: Stored) -> str:
    """A sentence that names the first field or tensor of the file that is not the model's, layer by layer."""
    try:
        exported = FORMATS[format_].read(path)
    except KodaError as error:
        return f"Read back, {error}"
    for field in fields(LlamaConfig):
        ours, theirs = (getattr(stored.config, field.name) for stored in (model, exported))
        if ours != theirs and not (isinstance(ours, float) and math.isclose(ours, theirs, rel_tol=1e-6)):
            return f"First to differ: {field.name} = {theirs}, the model has {ours}."
    coarsest = 0.0
    for (name, expected), (_, actual) in zip(to_hf(model.params), to_hf(exported.params), strict=True):
        far = distance(expected, actual)
        if not far <= WRONG:
            return f"First to differ: {place(name)} (relative error {far:.2g})."
        coarsest = max(coarsest, far)
    how = next(words for limit, words in ROUNDING.items() if coarsest <= limit)
    if how == FURTHER:
        return (
            f"Its shape and all its weights are the model's ({how}): so few bits cost this model more than the limit "
            "allows. Leave the export out (convert.gguf, convert.mlx), or set another limit (convert.limits)."
        )
    return f"Its shape and all its weights are the model's ({how}): the fault is in the rest of it."


def distance(expected: np.ndarray, actual: np.ndarray) -> float:
    """Relative error of a tensor, in the Frobenius norm."""
    a, b = expected.astype(np.float32), actual.astype(np.float32)
    return float(np.linalg.norm(b - a) / max(float(np.linalg.norm(a)), 1e-30))


def place(hf_name: str) -> str:
    """`model.layers.3.self_attn.q_proj.weight` → `layer 3, self_attn.q_proj`."""
    name = hf_name.removeprefix("model.").removesuffix(".weight")
    if not name.startswith("layers."):
        return name
    number, module = name.removeprefix("layers.").split(".", 1)
    return f"layer {number}, {module}"
