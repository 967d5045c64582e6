"""A longer context: the NTK-aware change of the rotary base, and the loss by position before and after."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model import weights
from model.data.batches import Batches
from model.files import write_json
from model.llama import Llama
from model.rope import ntk_theta

BINS = 16  # points of the curve over the doubled context
BATCH = 4


def extend(source: str, out: str, heldout: str, factor: float, rows: int) -> dict[str, Any]:
    """Write `out`/weights: the model of `source` with its context `factor` times as long; returns the figures.

    positions.json holds the held-out loss by position, for the old base and for the new one.
    """
    old = weights.load(Path(source))
    config = old.config
    theta = ntk_theta(config.rope_theta, factor, config.head_dim)
    context = int(config.max_position_embeddings * factor)
    new = stretched(old, context, theta)
    curves = {}
    for label, model in (("unchanged", stretched(old, context, config.rope_theta)), ("ntk", new)):
        curves[label] = loss_by_position(model, Path(heldout), context, rows)
    weights.save(Path(out) / "weights", new)
    edges = [context * number // BINS for number in range(BINS + 1)]
    write_json(
        Path(out) / "positions.json",
        {
            "old_context": config.max_position_embeddings,
            "edges": edges,
            **{label: [float(curve[a:b].mean()) for a, b in pairwise(edges)] for label, curve in curves.items()},
        },
    )
    half = config.max_position_embeddings
    return {
        "context": context,
        "rope_theta": theta,
        "old_rope_theta": config.rope_theta,
        **{
            f"loss_{part}_{label}": round(float(curve[span].mean()), 4)
            for label, curve in curves.items()
            for part, span in (("within", slice(0, half)), ("beyond", slice(half, None)))
        },
    }


def stretched(model: Llama, context: int, theta: float) -> Llama:
    """The same weights under another context and rotary base."""
    graph, state = weights.abstract(
        replace(model.config, max_position_embeddings=context, rope_theta=theta), model.compute
    )
    return weights.build(graph, state, nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def loss_by_position(model: Llama, heldout: Path, context: int, rows: int) -> np.ndarray:
    """Mean held-out loss at each position of the context, `[context]`, nats."""
    batches = Batches(heldout, batch_size=BATCH, sequence_length=context, seed=0)
    graph, state = nnx.split(model)

    @jax.jit
    def losses(state: nnx.State, inputs_BT: jax.Array, targets_BT: jax.Array) -> jax.Array:
        logits_BTV = nnx.merge(graph, state)(inputs_BT)
        chosen_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], -1)[..., 0]
        return jax.nn.logsumexp(logits_BTV, -1) - chosen_BT

    count = max(BATCH, min(rows, batches.rows) // BATCH * BATCH)
    found = [
        np.asarray(losses(state, batch.inputs_BT, batch.targets_BT))
        for first in range(0, count, BATCH)
        for batch in [batches.take(np.arange(first, first + BATCH) % batches.rows)]
    ]
    return np.concatenate(found).mean(axis=0)
