"""AdamW and Muon with their schedules, from optax."""

from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from model.training.job import Recipe

# Weights are stacked, [layers, inputs, outputs]: the layers' axis is a batch of matrices to Muon.
STACKED_MATRIX = MuonDimensionNumbers(reduction_axis=1, output_axis=2)


def schedule(recipe: Recipe) -> optax.Schedule:
    """Learning rate by step. `wsd`: warm-up, a plateau, then a linear way down (Hu et al. 2024, arXiv:2404.06395)."""
    warmup, steps = min(recipe.warmup_steps, recipe.steps), recipe.steps
    up = optax.linear_schedule(0.0, recipe.learning_rate, max(1, warmup))
    if recipe.schedule == "cosine":
        down = optax.cosine_decay_schedule(recipe.learning_rate, max(1, steps - warmup), alpha=0.1)
        return optax.join_schedules([up, down], [warmup])
    decay = round(recipe.decay_fraction * steps)
    down = optax.linear_schedule(recipe.learning_rate, 0.0, max(1, decay))
    flat = optax.constant_schedule(recipe.learning_rate)
    return optax.join_schedules([up, flat, down], [warmup, max(warmup, steps - decay)])


def decays(params: Any) -> Any:
    """Which weights decay: the layers' matrices. Norms, embeddings and the head do not."""
    return jax.tree.map_with_path(lambda path, _: _name(path) == "kernel", params)


def build(recipe: Recipe) -> optax.GradientTransformation:
    """Clip by the global norm, then the recipe's optimizer.

    Muon (Jordan et al. 2024) takes the layers' matrices; what it is not made for (embeddings, head, norms) goes to
    AdamW. Its updates are scaled to AdamW's size (Liu et al. 2025, arXiv:2502.16982), so that one rate serves both.
    """
    rate = schedule(recipe)
    if recipe.optimizer == "muon":
        inner = muon(
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
    else:
        inner = optax.adamw(rate, b2=0.95, weight_decay=recipe.weight_decay, mask=decays)
    return optax.chain(optax.clip_by_global_norm(recipe.clip_norm), inner)


def _name(path: tuple) -> str:
    return str(getattr(path[-1], "key", ""))
