"""A scaling law: bits per byte by the size of a model and the text it reads, fitted to small trainings.

L(N, D) = E + (A / N^α + B / D^β)^γ, with N the floating-point operations of a training step per token, over 6, so that
6 · N · D is a training's compute, and D the tokens that it reads. With γ = 1 it is the form of Hoffmann et al. 2022
(arXiv:2203.15556), a sum of a term of N and one of D; with E = 0 and β = 1 that of Kaplan et al. 2020
(arXiv:2001.08361, equation 1.5), in which a larger model gains more by more text. Fitted to small trainings both were
further from what the large one reached (docs/ladder.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from model.errors import KodaError

FLOORS = (0.0, 0.3, 0.6)  # of the lowest loss; a fit begins at each of these, with each of
ALPHAS, BETAS, GAMMAS = np.geomspace(0.2, 2.0, 5), (0.4, 0.7, 1.0), np.geomspace(0.08, 1.0, 6)
REFINED = 4  # of these beginnings, the nearest to the points
# Of E over the lowest loss, A, α, B, β, γ.
BOUNDS = ((0.0, 0.0, 0.05, 0.0, 0.2, 0.03), (0.99, np.inf, 4.0, np.inf, 1.5, 2.0))
SCATTER = 0.01  # of the losses, and of the form; a residual far beyond it counts by its logarithm
NOTHING = 1e-6  # share of A / N^α and B / D, in the middle of the points, below which one of them is none
RESAMPLES = 100
INTERVAL = 0.9  # share of resampled forecasts inside the interval
LEAST = 7  # points, for six numbers


@dataclass(frozen=True)
class Point:
    """A finished training."""

    n: float  # floating-point operations of a step per token, over 6
    tokens: float
    loss: float  # held out, bits per byte

    @property
    def compute(self) -> float:
        return self.n * self.tokens


@dataclass(frozen=True)
class Law:
    floor: float  # E: what no size and no text takes away
    a: float
    alpha: float
    b: float
    beta: float
    gamma: float

    def __call__(self, n: float, tokens: float) -> float:
        """Bits per byte of a model of this size after so many tokens."""
        return float(self.floor + (self.a * n**-self.alpha + self.b * tokens**-self.beta) ** self.gamma)

    def best(self, flops: float) -> tuple[float, float] | None:
        """N and D that this compute is spent best on: where a little more of either helps equally. None where the
        points showed no effect of one of them."""
        if not self.a or not self.b:
            return None
        n = (self.alpha * self.a / (self.beta * self.b) * (flops / 6) ** self.beta) ** (1 / (self.alpha + self.beta))
        return n, flops / (6 * n)


@dataclass(frozen=True)
class Forecast:
    """What a training is expected to reach, bits per byte."""

    loss: float
    low: float
    high: float


def fit(points: Sequence[Point], near: Law | None = None) -> Law:
    """The law that fits best. Raises KodaError for fewer than LEAST points.

    A and B are linear once E, α, β and γ are known: they are solved for, without going below zero, at each of a grid of
    beginnings, and the nearest ones are refined. Residuals are relative, and Cauchy's loss counts those that are far
    off less. With `near` it begins there.
    """
    from scipy.optimize import least_squares, nnls  # here, as who only reads a forecast need not wait for it

    if len(points) < LEAST:
        raise KodaError(f"{len(points)} points are too few for a law of six numbers; {LEAST} would do.")
    n, d, loss = (np.array([getattr(point, name) for point in points]) for name in ("n", "tokens", "loss"))
    unit_n, unit_d, lowest = np.exp(np.log(n).mean()), np.exp(np.log(d).mean()), loss.min()
    x, y = n / unit_n, d / unit_d

    def residuals(numbers: np.ndarray) -> np.ndarray:
        floor, a, alpha, b, beta, gamma = numbers
        return np.log((lowest * floor + (a * x**-alpha + b * y**-beta) ** gamma) / loss)

    def beginning(floor: float, alpha: float, beta: float, gamma: float) -> np.ndarray:
        terms = (loss - lowest * floor) ** (1 / gamma)
        (a, b), _ = nnls(np.stack([x**-alpha, y**-beta], axis=1) / terms[:, None], np.ones_like(terms))
        return np.array([floor, a, alpha, b, beta, gamma])

    def distance(numbers: np.ndarray) -> float:
        return float(np.log1p((residuals(numbers) / SCATTER) ** 2).sum())

    if near is None:
        begun = [beginning(*each) for each in product(FLOORS, ALPHAS, BETAS, GAMMAS)]
        begun = sorted(begun, key=distance)[:REFINED]
    else:
        a, b = near.a * unit_n**-near.alpha, near.b * unit_d**-near.beta
        begun = [np.array([near.floor / lowest, a, near.alpha, b, near.beta, near.gamma])]
    low, high = (np.array(bound) for bound in BOUNDS)
    fits = [
        least_squares(
            residuals,
            np.clip(start, low + 1e-9, high - 1e-9),
            bounds=(low, high),
            loss="cauchy",
            f_scale=SCATTER,
            x_scale="jac",
            max_nfev=400,
        )
        for start in begun
    ]
    floor, a, alpha, b, beta, gamma = map(float, min(fits, key=lambda each: each.cost).x)
    a, b = (term if term > NOTHING * (a + b) else 0.0 for term in (a, b))
    return Law(float(lowest * floor), float(a * unit_n**alpha), alpha, float(b * unit_d**beta), beta, gamma)


def forecast(points: Sequence[Point], law: Law, n: float, tokens: float, seed: int = 0) -> Forecast:
    """What the `law` of these points expects of a training, with an interval.

    It holds INTERVAL of the forecasts by resampled residuals, with a single training's own scatter. And it is at least
    as wide as the law was wrong about a size's longest training when it was fitted to the others, for as many times the
    compute.
    """
    draw = np.random.default_rng(seed)
    expected = np.array([law(point.n, point.tokens) for point in points])
    freedom = np.sqrt(len(points) / max(1, len(points) - 6))  # the law bends towards the points that it was fitted to
    residuals = freedom * np.log(np.array([point.loss for point in points]) / expected)
    forecasts = []
    for _ in range(RESAMPLES):
        again = expected * np.exp(draw.choice(residuals, len(points)))
        resampled = [Point(point.n, point.tokens, float(loss)) for point, loss in zip(points, again, strict=True)]
        forecasts.append(fit(resampled, law)(n, tokens) * np.exp(draw.choice(residuals)))
    low, high = np.quantile(forecasts, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2])
    loss, wrong = law(n, tokens), np.exp(_wrong(points, law) * np.log(n * tokens / max(p.compute for p in points)))
    return Forecast(loss, float(min(low, loss / wrong)), float(max(high, loss * wrong)))


def _wrong(points: Sequence[Point], near: Law) -> float:
    """How far off, for each e-fold of compute, the law of all but the longest trainings is about one of these at most;
    relative. 0 where too few are left to fit it."""
    by_size: dict[float, list[Point]] = {}
    for point in sorted(points, key=lambda point: point.tokens):
        by_size.setdefault(point.n, []).append(point)
    shorter = [point for size in by_size.values() for point in size[:-1]]
    if len(shorter) < LEAST:
        return 0.0
    law = fit(shorter, near)
    return max(
        float(abs(np.log(law(longest.n, longest.tokens) / longest.loss)) / np.log(longest.tokens / before.tokens))
        for *_, before, longest in (size for size in by_size.values() if len(size) > 1)
    )
