"""AdamW and Muon with their schedules, from optax."""

from typing import Any, TypeVar

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from model.errors import KodaError
from model.training.job import Recipe

# Weights are stacked, [layers, inputs, outputs]: the layers' axis is a batch of matrices to Muon.
STACKED_MATRIX = MuonDimensionNumbers(reduction_axis=1, output_axis=2)


def _wsd(recipe: Recipe, warmup: int) -> tuple[list[optax.Schedule], list[int]]:
    """A plateau, then a linear way down to zero (Hu et al. 2024, arXiv:2404.06395)."""
    decay = round(recipe.decay_fraction * recipe.steps)
    flat = optax.constant_schedule(recipe.learning_rate)
    down = optax.linear_schedule(recipe.learning_rate, 0.0, max(1, decay))
    return [flat, down], [max(warmup, recipe.steps - decay)]


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


def _adamw(recipe: Recipe, rate: optax.Schedule) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) for everything."""
    return optax.adamw(rate, b2=0.95, weight_decay=recipe.weight_decay, mask=decays)


def _muon(recipe: Recipe, rate: optax.Schedule) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for the layers' matrices, AdamW for the embeddings, the head and the norms.

    Muon's updates are scaled to AdamW's size (Liu et al. 2025, arXiv:2502.16982), so that one rate serves both.
    """
    return muon(
        rate,
        weight_decay=recipe.weight_decay,
        weight_decay_mask=decays,
        consistent_rms=0.2,
        adam_b2=0.95,
        adam_weight_decay=0.0,
        muon_weight_dimension_numbers=lambda params: jax.tree.map_with_path(
            lambda path, _: STACKED_MATRIX if _name(path) == "kernel" else None, params
        ),
    )


OPTIMIZERS = {"muon": _muon, "adamw": _adamw}


def build(recipe: Recipe) -> optax.GradientTransformation:
    """Clip by the global norm, then the recipe's optimizer. Raises KodaError for an unknown one."""
    inner = _named(OPTIMIZERS, "optimizer", recipe.optimizer)(recipe, schedule(recipe))
    return optax.chain(optax.clip_by_global_norm(recipe.clip_norm), inner)


Choice = TypeVar("Choice")


def _named(table: dict[str, Choice], setting: str, name: str) -> Choice:
    if name not in table:
        raise KodaError(f"{setting} = {name!r}: there are {', '.join(table)}.")
    return table[name]


def _name(path: tuple) -> str:
    return str(getattr(path[-1], "key", ""))
