"""Step 0 of a training: its network and its state, as functions that need not be computed to be measured."""

import jax.numpy as jnp
import optax
from flax import nnx

from model.llama import Llama
from model.lora import add_lora
from model.training.job import Job
from model.training.step import State


def network(job: Job) -> Llama:
    """The network with its first, random numbers, and with LoRA's matrices beside its own where the job has them."""
    rngs = nnx.Rngs(job.recipe.seed)
    model = Llama(job.model, job.compute, rngs=rngs)
    if job.lora is not None:
        add_lora(model, job.lora.rank, job.lora.alpha, job.lora.targets, rngs=rngs)
    return model


def first_state(job: Job, optimizer: optax.GradientTransformation) -> State:
    """What a training of this job changes, at step 0."""
    params = nnx.to_pure_dict(nnx.state(network(job), nnx.LoRAParam if job.lora else nnx.Param))
    return State(jnp.int32(0), params, optimizer.init(params))
