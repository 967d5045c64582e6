"""From the last checkpoint of a finished training to weights that the stages after it may trust."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from model import arrays, sharding, weights
from model.errors import KodaError
from model.figures import CheckpointFigures
from model.llama import Llama
from model.lora import merge_lora
from model.training.job import Job
from model.training.training import Training

# Recorded and measured on the same kind of machine the two are equal to the bit; another backend sums in another order.
TOLERANCE = 1e-3


def restored(job: Job) -> tuple[Training, dict[str, Any]]:
    """The training at its last step, on the devices that are here, and what its checkpoint recorded.

    Raises KodaError if it never got there.
    """
    fsdp, tensor = sharding.nearest(job.fsdp, job.tensor)
    training = Training(replace(job, fsdp=fsdp, tensor=tensor, second_place=""))
    newest = training.checkpoints.restore(training.program.shapes)
    if newest is None or newest[0] != job.recipe.steps:
        at = "none" if newest is None else f"step {newest[0]}"
        raise KodaError(f"{job.folder} has no intact checkpoint of its last step {job.recipe.steps} (newest: {at}).")
    training.state = sharding.place(training.mesh, newest[1])
    return training, arrays.facts(training.checkpoints.folder / str(newest[0]))


def trained(training: Training) -> Llama:
    """The network with what it learned; low-rank updates are still beside their matrices."""
    return training.program.rebuild(training.state.params, training.frozen)


def promote(job: str, out: str) -> CheckpointFigures:
    """Verify the finished training of `job` (a file) and write its weights to `out`.

    Verified: every array whole and finite, and the held-out loss the one that was recorded.
    """
    training, facts = restored(Job.read(Path(job)))
    for name, leaf in arrays.flatten(training.state.params).items():
        if not bool(jnp.isfinite(leaf).all()):
            raise KodaError(f"{training.checkpoints.folder}: {name} has numbers that are not finite.")
    measured, recorded = training.heldout_loss(), facts["heldout_loss"]
    if abs(measured - recorded) > TOLERANCE:
        raise KodaError(
            f"{training.checkpoints.folder}: the held-out loss is {measured:.4f}, recorded was {recorded:.4f}. "
            "The held-out text or the code has changed since the training; run --from pretrain."
        )
    model = trained(training)
    merge_lora(model)
    weights.save(Path(out), model, step=facts["step"])
    return CheckpointFigures(
        parameters=sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))),
        step=facts["step"],
        heldout_loss=round(measured, 6),
        recorded_heldout_loss=round(recorded, 6),
    )
