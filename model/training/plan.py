"""What a training step needs, before it runs: compiled ahead of time on shapes alone."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from model import arrays, sharding, weights
from model.data.batches import Batch
from model.training import optimizer as optimizers
from model.training.initial_state import first_state, network
from model.training.job import Job
from model.training.step import make_step


def memory(job: dict[str, Any], rows: list[int], enough: float) -> dict[str, Any]:
    """Bytes that one device of this process's mesh needs during a step, for each batch of so many rows.

    `state` is its share of the weights and the optimizer, `temporary` what XLA's memory analysis adds while the step
    runs. No larger batch is tried after one that needs more than `enough` bytes.
    """
    order = Job.from_dict(job)
    mesh = sharding.make_mesh(order.fsdp, order.tensor)
    optimizer = optimizers.build(order.recipe)
    graph, abstract = nnx.split(nnx.eval_shape(lambda: network(order)))
    shapes = jax.eval_shape(lambda: first_state(order, optimizer))
    state = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        shapes,
        sharding.shardings(mesh, shapes),
    )
    parts = order.recipe.gradient_accumulation_steps
    step = make_step(
        lambda params, frozen: weights.build(graph, abstract, frozen, params), optimizer, order.recipe.z_loss, parts
    )
    needed = {}
    for count in rows:
        sharding.check_rows(mesh, count, parts)
        shape, by_rows = (count, order.sequence_length), NamedSharding(mesh, P(sharding.ROWS))
        tokens, weight = (jax.ShapeDtypeStruct(shape, t, sharding=by_rows) for t in (jnp.int32, jnp.float32))
        with jax.set_mesh(mesh):
            needs = step.lower(state, {}, Batch(tokens, tokens, weight, None)).compile().memory_analysis()
        assert needs is not None, "both backends, CPU and GPU, have the analysis"
        needed[str(count)] = {"state": needs.argument_size_in_bytes, "temporary": needs.temp_size_in_bytes}
        if sum(needed[str(count)].values()) > enough:
            break
    return {"backend": jax.default_backend(), "checkpoint": arrays.size(shapes), "rows": needed}
