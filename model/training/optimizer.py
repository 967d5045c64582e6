"""The optimizers and their schedules."""

from typing import Any, TypeVar

import jax
import optax

from model.errors import KodaError
from model.training.job import Recipe
from model.training.muon import scale_by_muon, scale_by_width

# Measured at two sizes, with what was tried beside it: bench/LOG.md, "The recipe".
EMBEDDING = 6.0  # times the learning rate, for embeddings under Muon
# Under Muon a learning rate is that of a model of this width. The best one fell with the power TRANSFER of the width,
# from a quarter of it to four times it, so that one setting is the best of them all.
WIDTH, TRANSFER = 128, 0.75
SQUARES = 0.99  # Adam's decay of squared gradients: in small batches most rows of an embedding have no gradient


def _wsd(recipe: Recipe, warmup: int) -> tuple[list[optax.Schedule], list[int]]:
    """A plateau, then a linear way down to zero (Hu et al. 2024, arXiv:2404.06395)."""
    start = recipe.decay_start()
    flat = optax.constant_schedule(recipe.learning_rate)
    down = optax.linear_schedule(recipe.learning_rate, 0.0, max(1, recipe.steps - start))
    return [flat, down], [start]


def _cosine(recipe: Recipe, warmup: int) -> tuple[list[optax.Schedule], list[int]]:
    """A cosine down to a tenth."""
    return [optax.cosine_decay_schedule(recipe.learning_rate, max(1, recipe.steps - warmup), alpha=0.1)], []


SCHEDULES = {"wsd": _wsd, "cosine": _cosine}  # after the warm-up: schedules, and the steps between them


def schedule(recipe: Recipe) -> optax.Schedule:
    """Learning rate by step: a linear warm-up, then the recipe's schedule. Raises KodaError for an unknown one."""
    warmup = min(recipe.warmup_steps, recipe.steps)
    up = optax.linear_schedule(0.0, recipe.learning_rate, max(1, warmup))
    after, boundaries = _named(SCHEDULES, "schedule", recipe.schedule)(recipe, warmup)
    return optax.join_schedules([up, *after], [warmup, *boundaries])


def decays(params: Any) -> Any:
    """Which weights decay: the layers' matrices. Norms, embeddings and the head do not."""
    return jax.tree.map_with_path(lambda path, _: _name(path) == "kernel", params)


def kinds(params: Any) -> Any:
    """The kind of each weight: `matrix` of the layers, `embedding` (also where it is the head), `head`, or another
    `vector`."""

    def kind(path: tuple, decayed: bool) -> str:
        return "matrix" if decayed else _name(path) if _name(path) in ("embedding", "head") else "vector"

    return jax.tree.map_with_path(kind, decays(params))


def _adamw(recipe: Recipe, rate: optax.Schedule, width: int, dtype: str) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) for everything."""
    return optax.adamw(rate, b2=SQUARES, weight_decay=recipe.weight_decay, mask=decays)


def _muon(recipe: Recipe, rate: optax.Schedule, width: int, dtype: str) -> optax.GradientTransformation:
    """Muon for the layers' matrices, AdamW with Nesterov momentum for the embeddings, the head and the norms.

    Muon's updates are scaled to AdamW's size (Liu et al. 2025, arXiv:2502.16982), so that one rate serves both; the
    embeddings learn at EMBEDDING times that. All but the vectors learn the slower the wider the model is.
    """
    transfer = (WIDTH / width) ** TRANSFER

    def times(factor: float) -> optax.Schedule:
        return rate if factor == 1 else lambda step: factor * rate(step)  # as it is, XLA rounds as it does for optax

    matrices = optax.chain(
        scale_by_muon(dtype),
        scale_by_width(0.2),
        optax.add_decayed_weights(recipe.weight_decay),
        optax.scale_by_learning_rate(times(transfer)),
    )
    adam = {
        kind: optax.adamw(times(factor), b2=SQUARES, weight_decay=0.0, nesterov=True)
        for kind, factor in {"embedding": EMBEDDING * transfer, "head": transfer, "vector": 1.0}.items()
    }
    return optax.partition({"matrix": matrices, **adam}, kinds)


OPTIMIZERS = {"muon": _muon, "adamw": _adamw}


def build(recipe: Recipe, width: int, dtype: str) -> optax.GradientTransformation:
    """Clip by the global norm, then the recipe's optimizer, for a model of this width; its products are in `dtype`.

    Raises KodaError for an unknown one.
    """
    inner = _named(OPTIMIZERS, "optimizer", recipe.optimizer)(recipe, schedule(recipe), width, dtype)
    return optax.chain(optax.clip_by_global_norm(recipe.clip_norm), inner)


Choice = TypeVar("Choice")


def _named(table: dict[str, Choice], setting: str, name: str) -> Choice:
    if name not in table:
        raise KodaError(f"{setting} = {name!r}: there are {', '.join(table)}.")
    return table[name]


def _name(path: tuple) -> str:
    return str(getattr(path[-1], "key", ""))
