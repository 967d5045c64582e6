"""Sharding over devices: a mesh of data × fsdp × tensor, and the partition of each parameter.

`data` replicates the weights, `fsdp` shards them and gathers a layer's weights when it is used (Rajbhandari et al.
2020, arXiv:1910.02054), `tensor` splits the matrix products themselves (Shoeybi et al. 2019, arXiv:1909.08053). The
rows of a batch are sharded over data and fsdp. XLA derives the communication from these annotations (Xu et al. 2021,
arXiv:2105.04663).
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from model.errors import KodaError

Tree = TypeVar("Tree")
AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")
# By the end of the parameter's path: the paths of Muon's and AdamW's moments end the same way. The layers' axis is
# never split.
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
    "query/bias": P(None, "tensor"),  # [layers, heads · head_dim]
    "key/bias": P(None, "tensor"),  # [layers, kv_heads · head_dim]
    "value/bias": P(None, "tensor"),  # [layers, kv_heads · head_dim]
    "gate/bias": P(None, "tensor"),  # [layers, intermediate]
    "up/bias": P(None, "tensor"),  # [layers, intermediate]
}


def make_mesh(fsdp: int, tensor: int) -> Mesh:
    """A mesh of all devices, data × fsdp × tensor; data takes what the other two leave.

    Raises KodaError where fsdp × tensor does not divide the number of devices.
    """
    return jax.make_mesh(mesh_shape(jax.device_count(), fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3)


def mesh_shape(devices: int, fsdp: int, tensor: int) -> tuple[int, int, int]:
    """How many devices each axis of the mesh has; an fsdp of 0 takes all that `tensor` leaves.

    Raises KodaError where fsdp × tensor does not divide `devices`.
    """
    fsdp = fsdp or max(1, devices // tensor)
    if devices % (fsdp * tensor):
        raise KodaError(f"fsdp = {fsdp} times tensor = {tensor} does not divide the {devices} devices.")
    return devices // (fsdp * tensor), fsdp, tensor


def nearest(fsdp: int, tensor: int) -> tuple[int, int]:
    """A training's fsdp and tensor, each lowered to a divisor that fits the devices of this process."""
    fsdp = math.gcd(fsdp or jax.device_count(), jax.device_count())
    return fsdp, math.gcd(tensor, jax.device_count() // fsdp)


def partition(mesh: Mesh | AbstractMesh, name: str, shape: tuple[int, ...]) -> P:
    """The partition of the parameter (or optimizer moment) at this path.

    An axis is split only where its size is a multiple of the mesh axis's.
    """
    spec = next((spec for end, spec in PARTITIONS.items() if name.endswith(end) and len(spec) == len(shape)), P())
    return P(
        *(axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(spec, shape, strict=False))
    )


def shardings(mesh: Mesh, tree: Any) -> Any:
    """The sharding of every leaf of a state (arrays, or their shapes alone)."""

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, partition(mesh, _name(path), leaf.shape))

    return jax.tree.map_with_path(sharding, tree)


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def place(mesh: Mesh, tree: Any) -> Any:
    """Shard every leaf of a state by its partition; the leaves are whole in this process's memory."""

    def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, tree, shardings(mesh, tree))


def place_rows(mesh: Mesh, rows: int, read: Callable[[slice], Tree]) -> Tree:
    """A batch of `rows` rows, sharded over the mesh.

    `read` returns the rows of a slice, the first axis of each leaf. It is called for this process's own rows alone.
    """
    sharding = NamedSharding(mesh, P(ROWS))
    spans = {_span(index, rows) for index in sharding.addressable_devices_indices_map((rows,)).values()}
    pieces = {span: jax.tree.flatten(read(slice(*span))) for span in spans}
    leaves, structure = next(iter(pieces.values()))

    def assemble(number: int) -> jax.Array:
        shape = (rows, *leaves[number].shape[1:])
        return jax.make_array_from_callback(shape, sharding, lambda index: pieces[_span(index, rows)][0][number])

    return jax.tree.unflatten(structure, [assemble(number) for number in range(len(leaves))])


def _span(index: tuple[slice, ...] | None, rows: int) -> tuple[int, int]:
    assert index is not None
    return index[0].start or 0, rows if index[0].stop is None else index[0].stop


def check_rows(mesh: Mesh, batch_size: int, parts: int) -> None:
    """Check that the rows of a batch can be spread evenly over the mesh, in `parts` one after another.

    Raises KodaError where they cannot, with a batch size that would fit.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    unit = ways * parts
    if batch_size % unit:
        cut = f" and cut into gradient_accumulation_steps = {parts}" if parts > 1 else ""
        raise KodaError(
            f"batch_size = {batch_size} cannot be spread over {ways} devices (data {mesh.shape['data']} × "
            f"fsdp {mesh.shape['fsdp']}){cut}; {max(unit, batch_size // unit * unit)} rows would fit."
        )


def platform() -> str:
    """What a function that is being traced will run on: the devices of its mesh, which need not be here."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def shard_rows(x: jax.Array) -> jax.Array:
    """Keep activations sharded by rows, where XLA would follow the weights' sharding."""
    return _constrain(x, P(ROWS))


def shard_heads(x_BTXA: jax.Array) -> jax.Array:
    """Keep queries, keys and values in one sharding, which is what cuDNN's attention takes: by rows and by heads."""
    tensor = jax.sharding.get_abstract_mesh().shape.get("tensor", 1)
    return _constrain(x_BTXA, P(ROWS, None, "tensor" if x_BTXA.shape[2] % tensor == 0 else None))


def shard_layers(x_LMN: jax.Array) -> jax.Array:
    """Give each device some layers of a stack, whole; as many devices take part as divide the layers."""
    mesh, axes, ways = jax.sharding.get_abstract_mesh(), [], 1
    for axis in AXES:
        if x_LMN.shape[0] % (ways * mesh.shape.get(axis, 1)) == 0:
            axes.append(axis)
            ways *= mesh.shape.get(axis, 1)
    return x_LMN if ways == 1 else _constrain(x_LMN, P(tuple(axes)))


def shard_as(path: tuple, x: jax.Array) -> jax.Array:
    """Shard an update as the parameter at this path is."""
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else _constrain(x, partition(mesh, _name(path), x.shape))


def map_rows(function: Callable, by_rows: int) -> Callable:
    """`function` over each device's own rows, where there are several; its first result is summed over them all.

    `function(*arguments) → (sums, rows)`: the first `by_rows` arguments, and the second result, have their rows in axis
    1 and are sharded by them; the further arguments are whole on each device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in ROWS if mesh.shape.get(axis, 1) > 1)
    if not axes:
        return function

    def summed(*arguments: Any) -> tuple[Any, Any]:
        sums, rows = function(*arguments)
        return jax.lax.psum(sums, axes), rows

    def mapped(*arguments: Any) -> tuple[Any, Any]:
        specs = tuple(P(None, axes) if number < by_rows else P() for number in range(len(arguments)))
        # The sums begin as constants, which the check of what varies over devices takes amiss.
        return jax.shard_map(
            summed, in_specs=specs, out_specs=(P(), P(None, axes)), axis_names=set(axes), check_vma=False
        )(*arguments)

    return mapped


def _constrain(x: jax.Array, spec: P) -> jax.Array:
    """Inside a compiled step, on its mesh; nothing where there is none."""
    return x if jax.sharding.get_abstract_mesh().empty else jax.lax.with_sharding_constraint(x, spec)
