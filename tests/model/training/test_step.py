from dataclasses import replace

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


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Eight rows, some of them trained on a few tokens only, as conversations are."""
    rows = np.random.default_rng(0).integers(0, 320, (8, 33), np.int32)
    weight = np.random.default_rng(1).random((8, 32)) < np.linspace(0.1, 1, 8)[:, None]
    return Batch(rows[:, :-1], rows[:, 1:], weight.astype(np.float32), None)


def stepped(shape: LlamaConfig, batch: Batch, parts: int) -> tuple[State, dict]:
    model = Llama(shape, rngs=nnx.Rngs(0))
    graph, abstract = nnx.split(model)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    optimizer = optimizers.build(replace(RECIPE, warmup_steps=0))
    step = make_step(lambda p, f: weights.build(graph, abstract, f, p), optimizer, 1e-3, parts)
    return step(State(jnp.int32(0), params, optimizer.init(params)), {}, batch)


@pytest.mark.parametrize("parts", [2, 8])
def test_parts_one_after_another_are_the_same_step(shape: LlamaConfig, batch: Batch, parts: int) -> None:
    """Each part's losses count by the whole batch's trained tokens, however unevenly those lie; sums in another order
    differ in float32's last digits."""
    (_, whole), (_, cut) = (stepped(shape, batch, n) for n in (1, parts))
    assert float(cut["loss"]) == pytest.approx(float(whole["loss"]), rel=1e-6)
    assert float(cut["grad_norm"]) == pytest.approx(float(whole["grad_norm"]), rel=1e-5)


def test_a_bad_part_spoils_the_whole_step(shape: LlamaConfig, batch: Batch) -> None:
    weight = batch.weights_BT.copy()
    weight[3] = np.nan
    after, metrics = stepped(shape, batch._replace(weights_BT=weight), 4)
    assert not metrics["finite"] and int(after.step) == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
