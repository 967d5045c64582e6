"""Fine-tuning by the same process: what stays, what changes, and that a kill costs nothing."""

import signal
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from model import arrays, weights
from model.config import LORA_TARGETS
from model.exit_codes import DONE
from model.llama import Llama
from model.training.job import Job, LoraRecipe
from model.training.promote import restored, trained
from tests.model.training.test_loop import await_step, start

TARGETS = ("q_proj", "down_proj")


@pytest.fixture(scope="module")
def tuned(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A fine-tuning of two of the seven matrices, from random weights."""
    root = tmp_path_factory.mktemp("tuned")
    weights.save(root / "init", Llama(job.model, rngs=nnx.Rngs(3)))
    tuned = replace(
        job,
        folder=str(root / "uninterrupted"),
        init=str(root / "init"),
        lora=LoraRecipe(rank=4, alpha=8.0, targets=TARGETS),
        recipe=replace(job.recipe, steps=30, save_every_steps=10),
    )
    assert start(tuned, 30).wait(120) == DONE
    return tuned


def test_base_is_unchanged_bit_for_bit(tuned: Job) -> None:
    training, _ = restored(tuned)
    model, before = trained(training), arrays.read(Path(tuned.init or ""))
    after = arrays.flatten(nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.LoRAParam))))
    params = {name: array for name, array in after.items() if name in before}
    assert set(params) == set(before)
    for name, array in before.items():
        np.testing.assert_array_equal(np.asarray(params[name]), array)
    updates = jax.tree.leaves(nnx.state(model, nnx.LoRAParam))
    assert len(updates) == 2 * len(TARGETS) < 2 * len(LORA_TARGETS)
    assert all(float(np.abs(update).max()) > 0 for update in updates)


def test_kill_changes_no_bit_of_a_fine_tuning(tuned: Job) -> None:
    killed = replace(tuned, folder=f"{tuned.folder}-killed")
    process = start(killed, 30)
    await_step(killed, 15)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert start(killed, 30).wait(120) == DONE
    sums = [
        {name: facts["crc32"] for name, facts in arrays.facts(Path(job.folder) / "checkpoints/30")["arrays"].items()}
        for job in (tuned, killed)
    ]
    assert sums[0] == sums[1]


def test_without_low_rank_updates_every_matrix_learns(tuned: Job) -> None:
    full = replace(tuned, folder=f"{tuned.folder}-full", lora=None)
    assert start(full, 30).wait(120) == DONE
    before = arrays.read(Path(full.init or ""))
    after = arrays.flatten(nnx.to_pure_dict(nnx.state(trained(restored(full)[0]), nnx.Param)))
    assert {name for name, array in before.items() if np.array_equal(array, after[name])} == set()
