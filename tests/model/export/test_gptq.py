"""Rounding a matrix to small integers."""

import numpy as np
import pytest

from model.export.gptq import corrected, fit


@pytest.fixture
def draw() -> np.random.Generator:
    return np.random.default_rng(0)


def correlated(draw: np.random.Generator, tokens: int, width: int) -> np.ndarray:
    """Inputs like a network's: a few directions have most of the variance."""
    return draw.standard_normal((tokens, width)) @ (draw.standard_normal((width, width)) * np.geomspace(1, 0.02, width))


def moments(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x.T @ y / len(x)


def nearest(weights: np.ndarray, size: int) -> np.ndarray:
    """As mlx-lm rounds them."""
    import mlx.core as mx

    return np.array(mx.dequantize(*mx.quantize(mx.array(weights.astype(np.float32)), size, 4), size, 4))


def test_weights_that_codes_can_represent_are_kept(draw: np.random.Generator) -> None:
    codes = draw.integers(0, 16, (8, 2, 64))
    codes[..., :2] = (0, 15)  # the whole range occurs
    weights = (codes * 0.25 - 2.0).reshape(8, 128)
    fitted = fit(weights, np.eye(128), 4, 64)
    assert np.array_equal(fitted.codes, codes) and fitted.codes.dtype == np.uint8
    np.testing.assert_allclose(fitted.dense(), weights, atol=1e-6)


def test_products_with_correlated_inputs_change_less_than_by_rounding_to_nearest(draw: np.random.Generator) -> None:
    """On inputs that were not used to fit."""
    weights, x = draw.standard_normal((96, 128)), correlated(draw, 2000, 128)
    measured, others = x[:1000], x[1000:]

    def cost(rounded: np.ndarray) -> float:
        return float(np.square(others @ (rounded - weights).T).mean())

    assert cost(fit(weights, moments(measured, measured), 4, 64).dense()) < 0.5 * cost(nearest(weights, 64))
    # without the inputs, what is left is the search for the range
    assert cost(fit(weights, np.eye(128), 4, 64).dense()) > 0.6 * cost(nearest(weights, 64))


def test_matrix_makes_up_for_a_part_of_what_is_wrong_with_its_inputs(draw: np.random.Generator) -> None:
    weights, exact = draw.standard_normal((96, 128)), correlated(draw, 2000, 128)
    actual = exact @ (np.eye(128) + 0.02 * draw.standard_normal((128, 128)))
    better = corrected(weights, moments(actual, actual), moments(exact, actual))
    before, after = (np.square(actual @ w.T - exact @ weights.T).mean() for w in (weights, better))
    assert after < 0.5 * before
