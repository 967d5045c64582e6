"""Weights as small integers in groups that share a scale and a bias, rounded so that the product changes least.

A column's rounding error is made up for by the columns after it (GPTQ: Frantar et al. 2022, arXiv:2210.17323).

Letters in names: O outputs, I inputs, G groups, S weights of a group.
"""

from typing import Any, NamedTuple

import numpy as np

DAMPING = 0.1  # added to the moments' diagonal, of its mean: text that was not measured is different
NARROWEST, CANDIDATES = 0.55, 12  # of the ranges that are tried for a group, from its whole range on
# The share of the error of earlier layers that a layer makes up for. All of it would be fitted to this very text.
CORRECTED = 0.5


class Groups(NamedTuple):
    """A matrix, `[…, outputs, inputs]`: weight = code · scale + bias. Arrays of numpy or of JAX."""

    codes: Any  # uint8, `[…, outputs, groups, weights of a group]`
    scales: Any  # float32, `[…, outputs, groups]`
    biases: Any  # the same

    def dense(self) -> Any:
        """As float32, `[…, outputs, inputs]`."""
        weights = self.codes * self.scales[..., None] + self.biases[..., None]
        return weights.reshape(*self.codes.shape[:-2], -1)


def fit(weights_OI: np.ndarray, moments_II: np.ndarray, bits: int, size: int) -> Groups:
    """Round to codes of so many bits in groups of `size`, for inputs x with these moments, mean x xᵀ."""
    weights_OI = weights_OI.astype(np.float64)
    damped_II = damp(moments_II)
    # Row i: what makes up for a unit of error in column i, in the columns from i on.
    factor_II = np.linalg.cholesky(np.linalg.inv(damped_II)).T
    outputs, inputs = weights_OI.shape
    codes_OGS = np.empty((outputs, inputs // size, size), np.uint8)
    scales_OG, biases_OG = np.empty((2, outputs, inputs // size), np.float32)
    for group in range(inputs // size):
        start, stop = group * size, (group + 1) * size
        scale_O, bias_O = affine(weights_OI[:, start:stop], np.diag(damped_II)[start:stop], bits)
        scales_OG[:, group], biases_OG[:, group] = scale_O, bias_O
        errors_OS = np.empty((outputs, size))
        for place, column in enumerate(range(start, stop)):
            exact_O = weights_OI[:, column]
            codes_OGS[:, group, place] = code_O = np.clip(np.rint((exact_O - bias_O) / scale_O), 0, 2**bits - 1)
            errors_OS[:, place] = error_O = (exact_O - code_O * scale_O - bias_O) / factor_II[column, column]
            weights_OI[:, column + 1 : stop] -= np.outer(error_O, factor_II[column, column + 1 : stop])
        weights_OI[:, stop:] -= errors_OS @ factor_II[start:stop, stop:]
    return Groups(codes_OGS, scales_OG, biases_OG)


def corrected(weights_OI: np.ndarray, moments_II: np.ndarray, cross_II: np.ndarray) -> np.ndarray:
    """Weights for the inputs that come from rounded layers, with these moments, instead of the exact ones.

    `cross_II` is the mean product of an exact and an actual input (GPTAQ: Li et al. 2025, arXiv:2504.02692).
    """
    change_OI = np.linalg.solve(damp(moments_II), (weights_OI @ (cross_II - moments_II)).T).T
    return weights_OI + CORRECTED * change_OI


def damp(moments_II: np.ndarray) -> np.ndarray:
    moments_II = moments_II.astype(np.float64)
    return moments_II + DAMPING * np.diag(moments_II).mean() * np.eye(len(moments_II))


def affine(weights_OS: np.ndarray, importance_S: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale and bias of each row of a group, `[outputs]`: of some ranges, each fitted to the codes that it gives, the
    one with the least squared error, weighted by the columns' importance."""
    levels = 2**bits - 1
    low_O, high_O = weights_OS.min(axis=1), weights_OS.max(axis=1)
    middle_O, width_O = (low_O + high_O) / 2, np.maximum(high_O - low_O, 1e-6)
    share_S = importance_S / importance_S.sum()
    least_O = np.full(len(weights_OS), np.inf)
    best_2O = np.empty((2, len(weights_OS)))
    for part in np.linspace(1, NARROWEST, CANDIDATES):
        scale_O, bias_O = part * width_O / levels, middle_O - part * width_O / 2
        codes_OS = np.clip(np.rint((weights_OS - bias_O[:, None]) / scale_O[:, None]), 0, levels)
        code_O, weight_O = codes_OS @ share_S, weights_OS @ share_S
        variance_O = codes_OS**2 @ share_S - code_O**2
        scale_O = (codes_OS * weights_OS @ share_S - code_O * weight_O) / np.maximum(variance_O, 1e-12)
        bias_O = weight_O - scale_O * code_O
        codes_OS = np.clip(np.rint((weights_OS - bias_O[:, None]) / scale_O[:, None]), 0, levels)
        error_O = (codes_OS * scale_O[:, None] + bias_O[:, None] - weights_OS) ** 2 @ share_S
        best_2O[:, error_O < least_O] = np.stack([scale_O, bias_O])[:, error_O < least_O]
        least_O = np.minimum(least_O, error_O)
    return best_2O[0], best_2O[1]
