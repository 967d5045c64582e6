"""The step of a training, compiled ahead of time on shapes alone: for the devices of this process, or for a GPU that is
not here."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from model import sharding
from model.accelerators import Accelerator
from model.data.batches import Batch
from model.errors import KodaError
from model.training.job import Job
from model.training.program import Program
from model.training.step import State


def mesh_of(card: Accelerator, count: int, fsdp: int, tensor: int) -> Mesh:
    """A mesh of so many cards that need not be here. Raises KodaError where XLA's CUDA compiler is not installed."""
    try:
        topology = topologies.get_topology_desc(
            platform="cuda", target_config=card.target_config(), topology=f"1x1x{count}"
        )
    except (RuntimeError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
        raise KodaError(f"XLA's CUDA compiler does not come up: {str(error).splitlines()[0]}") from error
    shape = sharding.mesh_shape(count, fsdp, tensor)
    return Mesh(np.array(topology.devices).reshape(shape), sharding.AXES, axis_types=(AxisType.Auto,) * 3)


def state_shapes(program: Program, mesh: Mesh) -> State:
    """The state of a training as shapes with their shardings."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        program.shapes,
        sharding.shardings(mesh, program.shapes),
    )


def bytes_of(step: jax.stages.Compiled) -> tuple[int, int]:
    """What a compiled step takes on each device: its state and batch, and its temporaries."""
    needs = step.memory_analysis()
    assert needs is not None, "both backends, CPU and GPU, have the analysis"
    return needs.argument_size_in_bytes, needs.temp_size_in_bytes


def compile_step(job: Job, mesh: Mesh, options: dict[str, Any] | None = None) -> jax.stages.Compiled:
    """The job's step on this mesh, as its training compiles it. `options`: XLA's, by their names."""
    program, recipe = Program(job), job.recipe
    sharding.check_rows(mesh, recipe.batch_size, recipe.gradient_accumulation_steps)
    shape, by_rows = (recipe.batch_size, job.sequence_length), NamedSharding(mesh, P(sharding.ROWS))
    tokens, weight = (jax.ShapeDtypeStruct(shape, t, sharding=by_rows) for t in (jnp.int32, jnp.float32))
    with jax.set_mesh(mesh):
        segments = tokens if recipe.isolate_documents else None
        lowered = program.step.lower(state_shapes(program, mesh), {}, Batch(tokens, tokens, weight, segments))
        return lowered.compile(compiler_options=options)
