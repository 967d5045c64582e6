"""One optimizer step, as a pure function of state and batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from model.data.batches import Batch
from model.llama import Llama
from model.training.loss import cross_entropy

Rebuild = Callable[[Any, Any], Llama]  # what is trained, what is frozen → the network
Step = Callable[["State", Any, Batch], tuple["State", dict[str, jax.Array]]]


class State(NamedTuple):
    """Everything that a step changes."""

    step: jax.Array  # how many batches were read
    params: Any  # what is trained, nested dicts
    optimizer: Any


def loss(model: Llama, batch: Batch, z_loss: float = 0.0) -> tuple[jax.Array, jax.Array]:
    """Mean loss per trained token, with the z-loss in it (to be differentiated) and without (to be read), in nats."""
    x_BTD = model.hidden(model.embed(batch.inputs_BT), batch.segments_BT)
    plain, trained = cross_entropy(x_BTD, model.head_VD, batch.targets_BT, batch.weights_BT, z_loss)
    count = jnp.maximum(batch.weights_BT.sum(), 1.0)
    return trained / count, plain / count


def make_step(rebuild: Rebuild, optimizer: optax.GradientTransformation, z_loss: float) -> Step:
    """The step, compiled, its old state's memory given to the new one.

    A step whose loss or gradient is not finite changes nothing but the step number.
    """

    def step(state: State, frozen: Any, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        def objective(params: Any) -> tuple[jax.Array, jax.Array]:
            return loss(rebuild(params, frozen), batch, z_loss)

        (_, plain), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
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
