"""A scaling law: bits per byte by the size of a model and the text it reads, fitted to small trainings.

L(N, D) = E + A / N^α + B / D^β (Hoffmann et al. 2022, arXiv:2203.15556), with N the floating-point operations of a
training step per token over 6, so that 6 · N · D is a training's compute, and D the tokens that it reads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.errors import KodaError

EXPONENTS = np.geomspace(0.05, 1.5, 18)  # that are tried for α and β, before the best pair is refined
HUBER = 1.0  # scales of a residual up to which it counts by its square, beyond by its size
REWEIGHTED = 8  # times that the residuals decide how much each point counts
RESAMPLES = 200
INTERVAL = 0.9  # share of resampled forecasts inside the interval
LEAST = 6  # points, for five numbers


@dataclass(frozen=True)
class Point:
    """A finished training."""

    n: float  # floating-point operations of a step per token, over 6
    tokens: float
    loss: float  # held out, bits per byte


@dataclass(frozen=True)
class Law:
    floor: float  # E: what no size and no text takes away
    a: float
    alpha: float
    b: float
    beta: float

    def __call__(self, n: float, tokens: float) -> float:
        """Bits per byte of a model of this size after so many tokens."""
        return float(self.floor + self.a * n**-self.alpha + self.b * tokens**-self.beta)

    def best(self, flops: float) -> tuple[float, float] | None:
        """N and D that this compute is spent best on: where a little more of either helps equally. None where the
        points showed no effect of one of them."""
        if not self.a or not self.b:
            return None
        share = (self.alpha * self.a / (self.beta * self.b)) ** (1 / (self.alpha + self.beta))
        n = share * (flops / 6) ** (self.beta / (self.alpha + self.beta))
        return n, flops / (6 * n)


@dataclass(frozen=True)
class Forecast:
    """What a training is expected to reach, bits per byte."""

    loss: float
    low: float  # INTERVAL of the resampled forecasts lie between these
    high: float


def fit(points: Sequence[Point], near: Law | None = None) -> Law:
    """The law that fits best, by Huber's loss. Raises KodaError for fewer than LEAST points.

    E, A and B are linear once α and β are known: they are solved for, without going below zero, at each pair of
    exponents on a grid, and the best pair is refined (variable projection; Golub and Pereyra 1973; arXiv:2603.22339).
    With `near`, its exponents are refined, in place of the grid's.
    """
    from scipy.optimize import minimize, nnls  # here, as who only reads a forecast need not wait for it

    if len(points) < LEAST:
        raise KodaError(f"{len(points)} points are too few for a law of five numbers; {LEAST} would do.")
    n, d, loss = (np.array([getattr(point, name) for point in points]) for name in ("n", "tokens", "loss"))
    unit_n, unit_d = np.exp(np.log(n).mean()), np.exp(np.log(d).mean())
    x, y = np.log(n / unit_n), np.log(d / unit_d)

    def solve(exponents: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """E, A and B for the logarithms of α and β, and the residuals."""
        alpha, beta = np.exp(exponents)
        columns = np.stack([np.ones_like(x), np.exp(-alpha * x), np.exp(-beta * y)], axis=1)
        root = np.sqrt(weight)
        coefficients, _ = nnls(columns * root[:, None], loss * root)
        return coefficients, loss - columns @ coefficients

    def error(exponents: np.ndarray, weight: np.ndarray) -> float:
        return float(weight @ solve(exponents, weight)[1] ** 2)

    weight = np.ones_like(loss)
    tried = [(near.alpha, near.beta)] if near else [(alpha, beta) for alpha in EXPONENTS for beta in EXPONENTS]
    exponents = min(map(np.log, tried), key=lambda pair: error(pair, weight))
    bounds = [(np.log(EXPONENTS[0]), np.log(EXPONENTS[-1]))] * 2
    for _ in range(REWEIGHTED):
        exponents = minimize(
            error, exponents, (weight,), method="Nelder-Mead", bounds=bounds, options={"xatol": 1e-3}
        ).x
        coefficients, residuals = solve(exponents, weight)
        scale = 1.4826 * np.median(np.abs(residuals)) + 1e-12  # a normal distribution's standard deviation
        updated = np.minimum(1.0, HUBER * scale / np.maximum(np.abs(residuals), 1e-15))
        if np.allclose(updated, weight, atol=1e-3):
            break
        weight = updated
    (floor, a, b), (alpha, beta) = coefficients, np.exp(exponents)
    return Law(float(floor), float(a * unit_n**alpha), float(alpha), float(b * unit_d**beta), float(beta))


def forecast(points: Sequence[Point], n: float, tokens: float, seed: int = 0) -> Forecast:
    """What the law of these points expects of a training, with an interval by resampled residuals.

    The interval holds the law's uncertainty and one training's own scatter. It does not hold what the law's form
    gets wrong.
    """
    law, draw = fit(points), np.random.default_rng(seed)
    expected = np.array([law(point.n, point.tokens) for point in points])
    freedom = np.sqrt(len(points) / max(1, len(points) - 5))  # the law bends towards the points that it was fitted to
    residuals = freedom * (np.array([point.loss for point in points]) - expected)
    forecasts = []
    for _ in range(RESAMPLES):
        again = expected + draw.choice(residuals, len(points))
        resampled = [Point(point.n, point.tokens, float(loss)) for point, loss in zip(points, again, strict=True)]
        forecasts.append(fit(resampled, law)(n, tokens) + draw.choice(residuals))
    low, high = np.quantile(forecasts, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2])
    return Forecast(law(n, tokens), float(low), float(high))
