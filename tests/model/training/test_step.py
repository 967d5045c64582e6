"""One optimizer step: equal however the batch is cut, and without effect where a number is not finite.

Letters in names: B batch, T time.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model import weights
from model.config import LlamaConfig
from model.data.batches import Batch
from model.llama import Llama
from model.training import optimizer as optimizers
from model.training.step import State, make_step
from tests.model.training.test_optimizer import RECIPE

Metrics = dict[str, jax.Array]


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Eight rows, some of them trained on a few tokens only, as conversations are."""
    rows = np.random.default_rng(0).integers(0, 320, (8, 33), np.int32)
    weight = np.random.default_rng(1).random((8, 32)) < np.linspace(0.1, 1, 8)[:, None]
    return Batch(rows[:, :-1], rows[:, 1:], weight.astype(np.float32), None)


def first_step(
    shape: LlamaConfig, parts: int, dropout: float = 0.0, seed: int = 0
) -> tuple[Callable[[State, Batch], tuple[State, Metrics]], State]:
    """A compiled step, and a state of random weights. The step donates its state, which cannot be read afterwards."""
    model = Llama(shape, rngs=nnx.Rngs(0))
    graph, abstract = nnx.split(model)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    optimizer = optimizers.build(replace(RECIPE, warmup_steps=0), shape.hidden_size, "float32")
    step = make_step(lambda p, f: weights.build(graph, abstract, f, p), optimizer, 1e-3, parts, dropout, seed)
    return lambda state, batch: step(state, {}, batch), State(jnp.int32(0), params, optimizer.init(params))


def copy(tree: Any) -> Any:
    return jax.tree.map(np.array, tree)


def assert_close(actual: Any, expected: Any, scale: Any, tolerance: float) -> None:
    """The norm of each leaf's error is below `tolerance` times the norm of the same leaf of `scale`."""
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(expected)]
    for name, a, e, s in zip(names, *map(jax.tree.leaves, (actual, expected, scale)), strict=True):
        assert np.linalg.norm(a - e) <= tolerance * np.linalg.norm(s), name


@pytest.mark.parametrize("parts", [2, 8])
def test_a_batch_in_parts_gives_the_same_state(shape: LlamaConfig, batch: Batch, parts: int) -> None:
    """Each part's losses count by the whole batch's trained tokens, however unevenly those are spread.

    The sum over 256 tokens has another order in parts: in float32, 2^-24 · √256 = 1e-6 of a gradient, twice that of its
    square. AdamW's first step divides a gradient by its size. Rounding then matters where the size is near epsilon,
    1e-8, and such weights are few.
    """
    step, state = first_step(shape, 1)
    before = copy(state.params)
    whole, metrics = step(state, batch)
    step, state = first_step(shape, parts)
    cut, cut_metrics = step(state, batch)
    assert float(cut_metrics["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-6)
    assert float(cut_metrics["grad_norm"]) == pytest.approx(float(metrics["grad_norm"]), rel=1e-5)
    assert int(cut.step) == int(whole.step) == 1
    assert_close(cut.optimizer, whole.optimizer, whole.optimizer, 4e-6)
    update = jax.tree.map(lambda new, old: new - old, whole.params, before)
    assert_close(cut.params, whole.params, update, 1e-3)


def test_one_part_that_is_not_finite_leaves_the_state_unchanged(shape: LlamaConfig, batch: Batch) -> None:
    """After a good step, so that the moments are not zero: only the step number advances."""
    step, state = first_step(shape, 4)
    state, metrics = step(state, batch)
    assert metrics["finite"]
    before = copy(state)
    weight = batch.weights_BT.copy()
    weight[3] = np.nan
    after, metrics = step(state, batch._replace(weights_BT=weight))
    assert not metrics["finite"] and int(after.step) == 2
    jax.tree.map(np.testing.assert_array_equal, after._replace(step=before.step), before)


def test_dropout_draws_by_seed_and_step_alone(shape: LlamaConfig, batch: Batch) -> None:
    """So a resumed training draws what it would have drawn; and the loss without it is another."""

    def drawn(dropout: float, seed: int, steps: list[int]) -> list[float]:
        step, state = first_step(shape, 1, dropout, seed)
        before = copy(state)
        return [float(step(copy(before)._replace(step=jnp.int32(at)), batch)[1]["loss"]) for at in steps]

    third, again, fourth = drawn(0.5, 0, [3, 3, 4])
    assert third == again
    assert len({third, fourth, *drawn(0.5, 1, [3]), *drawn(0.0, 0, [3])}) == 4
