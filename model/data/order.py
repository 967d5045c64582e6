"""The order in which rows are read: a pure function of the seed and the position, without state.

A keyed Feistel network (Luby and Rackoff 1988) permutes the smallest even power-of-two range that contains all rows.
A result outside the rows is permuted again until it is inside (cycle walking; Black and Rogaway 2002). Each epoch has
its own permutation, so that no row is read twice before all were read once.
"""

import numpy as np

ROUNDS = 6


def row_at(position: np.ndarray, rows: int, seed: int) -> np.ndarray:
    """The row at each position of the endless stream, `[n]` int64; `rows` is the number of rows in an epoch.

    >>> sorted(row_at(np.arange(5, 10), 5, seed=1).tolist())
    [0, 1, 2, 3, 4]
    """
    position = np.asarray(position, np.uint64)
    epoch, place = np.divmod(position, np.uint64(rows))
    half = np.uint64(max(1, ((rows - 1).bit_length() + 1) // 2))
    row = _permute(place, epoch, half, seed)
    while (outside := row >= rows).any():
        row[outside] = _permute(row[outside], epoch[outside], half, seed)
    return row.astype(np.int64)


def _permute(value: np.ndarray, epoch: np.ndarray, half: np.uint64, seed: int) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = value >> half, value & mask
    for number in range(ROUNDS):
        left, right = right, left ^ (_mix(right, epoch, np.uint64(seed * ROUNDS + number)) & mask)
    return (left << half) | right


def _mix(value: np.ndarray, epoch: np.ndarray, key: np.uint64) -> np.ndarray:
    """SplitMix64's finalizer (Steele, Lea and Flood 2014) over value, epoch and key; unsigned overflow is intended."""
    with np.errstate(over="ignore"):
        z = value + (epoch + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + key * np.uint64(0xD1B54A32D192ED03)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
