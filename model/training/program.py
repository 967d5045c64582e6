"""What a job computes: its network, its optimizer and its step, before any of it has numbers.

A training runs it and a plan compiles it, so that what is planned is what is run.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from model import sharding, weights
from model.llama import Llama
from model.lora import add_lora
from model.training import optimizer as optimizers
from model.training.job import Job
from model.training.step import State, make_step


class Program:
    """The functions of a job, and the shapes of what they work on."""

    def __init__(self, job: Job):
        """Raises KodaError for an optimizer or a schedule that is not known."""
        self.job, recipe = job, job.recipe
        self.optimizer = optimizers.build(recipe, job.model.hidden_size, job.compute.dtype)
        self.graph, self.abstract = nnx.split(nnx.eval_shape(partial(network, job)))
        self.shapes: State = jax.eval_shape(self.first_state)
        parts = recipe.gradient_accumulation_steps
        self.step = make_step(self.rebuild, self.optimizer, recipe.z_loss, parts, recipe.dropout, recipe.seed)

    def first_state(self) -> State:
        """What a training of this job changes, at step 0."""
        params = nnx.to_pure_dict(nnx.state(network(self.job), nnx.LoRAParam if self.job.lora else nnx.Param))
        return State(jnp.int32(0), params, self.optimizer.init(params))

    def initialize(self, mesh: Mesh) -> State:
        """The same, computed where it will lie: no device ever has more of it than its part."""
        return jax.jit(self.first_state, out_shardings=sharding.shardings(mesh, self.shapes))()

    def rebuild(self, params: Any, frozen: Any) -> Llama:
        """The network with these numbers."""
        return weights.build(self.graph, self.abstract, frozen, params)


def network(job: Job) -> Llama:
    """The network with its first, random numbers, and with LoRA's matrices beside its own where the job has them."""
    rngs = nnx.Rngs(job.recipe.seed)
    model = Llama(job.model, job.compute, rngs=rngs)
    if job.lora is not None:
        add_lora(model, job.lora.rank, job.lora.alpha, job.lora.targets, rngs=rngs)
    return model
