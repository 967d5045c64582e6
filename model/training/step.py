"""One optimizer step, as a pure function of state and batch.

Letters in names: B batch, T time, D model width, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from model.attention import Segments
from model.data.batches import Batch
from model.llama import Dropout, Llama
from model.training.loss import cross_entropy

Rebuild = Callable[[Any, Any], Llama]  # what is trained, what is frozen → the network


class State(NamedTuple):
    """Everything that a step changes."""

    step: jax.Array  # how many batches were read
    params: Any  # what is trained, nested dicts
    optimizer: Any


def loss(
    model: Llama, batch: Batch, count: jax.Array, z_loss: float = 0.0, dropout: Dropout | None = None
) -> tuple[jax.Array, jax.Array]:
    """Sum of the losses over `count`, with the z-loss in it (to be differentiated) and without (to be read), in nats.

    With `count` the batch's `trained_tokens`, that is the mean loss per trained token.
    """
    segments = None if batch.segments_BT is None else Segments(batch.segments_BT)
    x_BTD = model.hidden(model.embed(batch.inputs_BT), segments, dropout=dropout)
    plain, trained = cross_entropy(x_BTD, model.head_VD, batch.targets_BT, batch.weights_BT, z_loss)
    return trained / count, plain / count


def trained_tokens(batch: Batch) -> jax.Array:
    """How many tokens of a batch are in the loss; 1 where there are none."""
    return jnp.maximum(batch.weights_BT.sum(), 1.0)


def make_step(
    rebuild: Rebuild,
    optimizer: optax.GradientTransformation,
    z_loss: float,
    parts: int = 1,
    dropout: float = 0.0,
    seed: int = 0,
) -> jax.stages.Wrapped:
    """`(state, frozen, batch) → (state, metrics)`, compiled, its old state's memory given to the new one.

    With `parts` the rows go through the network in so many parts, one after another, and their gradients are added up:
    the same step in less memory. A step whose loss or gradient is not finite changes nothing but the step number.
    What `dropout` leaves out depends on `seed`, the step and the part alone, so that a resumed training draws the same.
    """

    def gradient(
        params: Any, frozen: Any, batch: Batch, count: jax.Array, draw: Dropout | None
    ) -> tuple[jax.Array, Any]:
        def objective(params: Any) -> tuple[jax.Array, jax.Array]:
            return loss(rebuild(params, frozen), batch, count, z_loss, draw)

        (_, plain), grads = jax.value_and_grad(objective, has_aux=True)(params)
        return plain, grads

    def step(state: State, frozen: Any, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        count = trained_tokens(batch)
        draw = Dropout(dropout, jax.random.key(seed)).of(state.step) if dropout else None
        if parts == 1:
            plain, grads = gradient(state.params, frozen, batch, count, draw)
        else:

            def add(total: tuple, piece: tuple[Batch, jax.Array]) -> tuple[tuple, None]:
                part, number = piece
                own = None if draw is None else draw.of(number)
                return jax.tree.map(jnp.add, total, gradient(state.params, frozen, part, count, own)), None

            zero = jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params)
            # Every parts-th row: rows that lie on one device stay there.
            cut = jax.tree.map(lambda a: a.reshape(-1, parts, *a.shape[1:]).swapaxes(0, 1), batch)
            (plain, grads), _ = jax.lax.scan(add, zero, (cut, jnp.arange(parts)))
        norm = optax.global_norm(grads)
        finite = jnp.isfinite(plain) & jnp.isfinite(norm)
        updates, advanced = optimizer.update(grads, state.optimizer, state.params)
        params, optimizer_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (optax.apply_updates(state.params, updates), advanced),
            (state.params, state.optimizer),
        )
        metrics = {"loss": plain, "grad_norm": norm, "finite": finite}
        return State(state.step + 1, params, optimizer_state), metrics

    return jax.jit(step, donate_argnums=0)
