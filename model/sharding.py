"""Where each number lies on many devices: a mesh of data × fsdp × tensor, and the partition of each parameter.

`data` copies the weights, `fsdp` spreads them and gathers a layer's when it is used (Rajbhandari et al. 2020,
arXiv:1910.02054), `tensor` splits the matrix products themselves (Shoeybi et al. 2019, arXiv:1909.08053). Rows of a
batch are spread over data and fsdp. XLA makes the communication from these annotations (Xu et al. 2021,
arXiv:2105.04663).
"""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from model.errors import KodaError

ROWS = ("data", "fsdp")
# By the end of the parameter's path; Muon's and AdamW's moments have the same ends. The layers' axis is never split.
PARTITIONS = {
    "embedding": P("tensor", "fsdp"),  # [vocabulary, d_model]
    "head": P("tensor", "fsdp"),  # [vocabulary, d_model]
    "query/kernel": P(None, "fsdp", "tensor"),  # [layers, d_model, heads · head_dim]
    "key/kernel": P(None, "fsdp", "tensor"),  # [layers, d_model, kv_heads · head_dim]
    "value/kernel": P(None, "fsdp", "tensor"),  # [layers, d_model, kv_heads · head_dim]
    "out/kernel": P(None, "tensor", "fsdp"),  # [layers, heads · head_dim, d_model]
    "gate/kernel": P(None, "fsdp", "tensor"),  # [layers, d_model, intermediate]
    "up/kernel": P(None, "fsdp", "tensor"),  # [layers, d_model, intermediate]
    "down/kernel": P(None, "tensor", "fsdp"),  # [layers, intermediate, d_model]
}


def make_mesh(fsdp: int, tensor: int) -> Mesh:
    """All devices, as data × fsdp × tensor; data is what the other two leave over. KodaError if that does not fit."""
    devices = jax.device_count()
    if devices % (fsdp * tensor):
        raise KodaError(f"fsdp = {fsdp} times tensor = {tensor} does not divide the {devices} devices there are.")
    shape = (devices // (fsdp * tensor), fsdp, tensor)
    return jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def partition(mesh: Mesh, name: str, shape: tuple[int, ...]) -> P:
    """The partition of the parameter (or optimizer moment) of this path; an axis that does not divide is not split."""
    spec = next((spec for end, spec in PARTITIONS.items() if name.endswith(end) and len(spec) == len(shape)), P())
    return P(
        *(axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(spec, shape, strict=False))
    )


def place(mesh: Mesh, tree: Any) -> Any:
    """Put every leaf of a state where its partition says."""

    def put(path: tuple, leaf: Any) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return jax.device_put(leaf, NamedSharding(mesh, partition(mesh, name, leaf.shape)))

    return jax.tree.map_with_path(put, tree)


def place_rows(mesh: Mesh, batch: Any) -> Any:
    """Spread the rows of a batch over the mesh."""
    return jax.device_put(batch, NamedSharding(mesh, P(ROWS)))


def check_rows(mesh: Mesh, batch_size: int) -> None:
    """Raise KodaError where the rows of a batch cannot be spread evenly."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % ways:
        raise KodaError(
            f"batch_size = {batch_size} cannot be spread over {ways} devices (data {mesh.shape['data']} × "
            f"fsdp {mesh.shape['fsdp']}); {max(ways, batch_size // ways * ways)} rows would fit."
        )


def keep_rows(x: jax.Array) -> jax.Array:
    """Inside a compiled step: activations stay spread by rows, whatever the weights around them would suggest."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, P(ROWS))
