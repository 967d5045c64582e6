"""Which small trainings a ladder is made of: shapes of the target's family, and the steps at which each ends.

A rung is one size. Its longest training keeps its rate on a plateau and lets it fall at the end (WSD; Hu et al. 2024,
arXiv:2404.06395). Shorter ones share its beginning and fall earlier, so that a rung gives several points for little
more than the compute of one.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from model.accelerators import flops_per_token
from model.config import LlamaConfig
from model.errors import KodaError
from model.training.job import Recipe

RUNGS = 4
FEWEST = 3  # rungs that a law can be fitted to
SMALLEST = 16.0  # times smaller than the target the smallest rung should be
ENDS = (1 / 8, 1 / 4, 1 / 2, 1)  # of a rung's longest training, at which the shorter ones end
RATES = (0.5, 2.0)  # times the preset's rate, tried with the shortest training of each rung
LAYERS = 4  # at least, where the target has so many: shallower ones gain less by more text (docs/ladder.md)
SHARE = 0.1  # of the target's compute that a rung's longest training takes, where no budget is stated
SHORTEST = 2.0  # times the warm-up that a training has to take at least


@dataclass(frozen=True)
class Rung:
    """One size, trained to each of `steps`, ascending."""

    model: LlamaConfig
    steps: tuple[int, ...]

    @property
    def n(self) -> float:
        return size(self.model)

    @property
    def name(self) -> str:
        return f"{self.model.num_hidden_layers}x{self.model.hidden_size}"


def size(model: LlamaConfig) -> float:
    """N of the scaling law: 6 · N · tokens is a training's compute."""
    return flops_per_token(model, model.max_position_embeddings) / 6


def family(target: LlamaConfig) -> list[LlamaConfig]:
    """The shapes below `target` with its heads' size, and its proportions of heads, widths and depth; the smallest
    first. Where these are too few, key/value heads may serve other numbers of query heads."""
    heads, kv_heads = target.num_attention_heads, target.num_key_value_heads
    served = heads // kv_heads  # query heads of a key/value head
    counts = range(served, heads, served)
    shapes = []
    for count in counts if len(counts) >= FEWEST else range(1, heads):
        share, most = count / heads, max(1, kv_heads * count // heads)
        shapes.append(
            replace(
                target,
                hidden_size=_multiple(target.hidden_size * share, 8),
                num_hidden_layers=max(min(LAYERS, target.num_hidden_layers), round(target.num_hidden_layers * share)),
                num_attention_heads=count,
                num_key_value_heads=max(k for k in range(1, most + 1) if count % k == 0),
                intermediate_size=_multiple(target.intermediate_size * share, 32),
            )
        )
    return shapes


def _multiple(value: float, of: int) -> int:
    return max(of, of * round(value / of))


def chosen(target: LlamaConfig) -> list[LlamaConfig]:
    """At most RUNGS shapes of the family, spread evenly by the logarithm of their size from the target's SMALLEST-th to
    half of it. Raises KodaError for a target with too small a family."""
    shapes, whole = family(target), size(target)
    rungs: list[LlamaConfig] = []
    for wanted in np.geomspace(whole / SMALLEST, whole / 2, RUNGS):
        left = [shape for shape in shapes if shape not in rungs and size(shape) < 0.75 * whole]
        if left:
            rungs.append(min(left, key=lambda shape: abs(np.log(size(shape) / wanted))))
    if len(rungs) < FEWEST:
        raise KodaError(
            f"model.num_attention_heads = {target.num_attention_heads}: a ladder needs {FEWEST} smaller sizes with "
            f"heads of {target.head_dim}, and there are {len(rungs)}. {FEWEST + 2} heads or more would do."
        )
    return sorted(rungs, key=size)


def rungs(target: LlamaConfig, tokens: float, rows: int, warmup: int, share: float) -> list[Rung]:
    """The ladder of a target that reads `tokens` in steps of `rows`, each rung's longest training with this share of
    its compute, and no more text than it. Trainings that would hardly be past their warm-up are left out, and rungs
    with fewer than two others."""
    per_step = rows * target.max_position_embeddings
    compute = share * size(target) * tokens
    planned = []
    for model in chosen(target):
        longest = min(compute / size(model), tokens) / per_step
        steps = tuple(s for s in (round(longest * end) for end in ENDS) if s >= max(8, SHORTEST * warmup))
        if len(steps) > 1:
            planned.append(Rung(model, steps))
    return planned


def total_steps(rung: Rung, recipe: Recipe) -> int:
    """Steps that all trainings of a rung take together: the beginning that they share, each decay, and the other
    rates."""
    *shorter, longest = rung.steps
    decays = (steps - replace(recipe, steps=steps).decay_start() for steps in shorter)
    return longest + sum(decays) + len(RATES) * rung.steps[0]


def affordable(
    ladders: Iterable[list[Rung]], seconds: dict[str, float], recipe: Recipe, start: float, budget: float
) -> list[Rung]:
    """The largest of `ladders`, ascending, that fits a budget in seconds.

    `seconds`: of a step, by the rung's name; `start`: of a process, until it trains. Raises KodaError where none does.
    """

    def cost(ladder: list[Rung]) -> float:
        processes = sum(2 * len(rung.steps) + len(RATES) for rung in ladder)
        return start * processes + sum(seconds[rung.name] * total_steps(rung, recipe) for rung in ladder)

    enough = [ladder for ladder in ladders if len(ladder) >= FEWEST]
    if fitting := [ladder for ladder in enough if cost(ladder) <= budget]:
        return fitting[-1]
    would = "the target itself is too short a training for one"
    if enough:
        would = f"{cost(enough[0]) / 3600:.2g} hours would do"
    raise KodaError(f"--hours {budget / 3600:.3g} is too little for {FEWEST} rungs: {would}.")
