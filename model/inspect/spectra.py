"""The singular values of the network's matrices, and what they say about how many directions a matrix uses.

Letters in names: L layers, I inputs, O outputs, M the smaller of the two.
"""

from collections.abc import Iterator

import jax
import numpy as np

from model.config import LORA_TARGETS, LlamaConfig
from model.llama import Llama

WIDE = 1024  # wider models have the matrices of three layers looked at: of all of them it would take hours


def layers(config: LlamaConfig) -> list[int]:
    """The layers whose matrices are looked at: all, or of a wide model the first, the middle and the last."""
    count = config.num_hidden_layers
    return list(range(count)) if config.hidden_size <= WIDE else sorted({0, count // 2, count - 1})


def matrices(model: Llama) -> Iterator[tuple[str, jax.Array]]:
    """The matrices of `layers` by their usual names, `[layers, inputs, outputs]`."""
    chosen = np.array(layers(model.config))
    for name, (part, matrix) in LORA_TARGETS.items():
        yield name, getattr(getattr(model.layers, part), matrix).kernel[...][chosen]


def singular_values(kernel_LIO: jax.Array | np.ndarray) -> np.ndarray:
    """Of each layer's matrix, the largest first: `[layers, min(inputs, outputs)]`.

    By the eigenvalues of the smaller product with its transpose, in float64.
    """
    values = []
    for kernel_IO in np.asarray(kernel_LIO, np.float64):
        small = kernel_IO if kernel_IO.shape[0] <= kernel_IO.shape[1] else kernel_IO.T
        values.append(np.sqrt(np.maximum(np.linalg.eigvalsh(small @ small.T)[::-1], 0)))
    return np.stack(values)


def effective_rank(values_LM: np.ndarray) -> np.ndarray:
    """exp of the entropy of σ / Σσ, `[layers]` (Roy and Vetterli 2007): M where all are equal, 1 where one is not 0."""
    share = values_LM / np.maximum(values_LM.sum(-1, keepdims=True), 1e-30)
    return np.exp(-np.where(share > 0, share * np.log(np.maximum(share, 1e-30)), 0).sum(-1))


def stable_rank(values_LM: np.ndarray) -> np.ndarray:
    """‖W‖²_F / ‖W‖²₂, `[layers]`: how many directions are as large as the largest."""
    return (values_LM**2).sum(-1) / np.maximum(values_LM[:, 0] ** 2, 1e-30)
