"""A model on disk between two stages: the network's configuration and its weights, with checksums."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from model import arrays
from model.config import Compute, LlamaConfig
from model.llama import Llama
from model.stored import Stored


def abstract(config: LlamaConfig, compute: Compute | None = None) -> tuple[nnx.GraphDef, nnx.State]:
    """The network without its weights: its graph, and the shapes of its parameters."""
    return nnx.split(nnx.eval_shape(lambda: Llama(config, compute, rngs=nnx.Rngs(0))))


def build(graph: nnx.GraphDef, state: nnx.State, *params: dict[str, Any]) -> Llama:
    """The network of `abstract` with these weights: nested dicts that together have every parameter."""
    merged = jax.tree.map(lambda leaf: leaf, state)
    for part in params:
        nnx.replace_by_pure_dict(merged, part)
    return nnx.merge(graph, merged)


def save(folder: Path, model: Llama, **facts: Any) -> None:
    """Write a model to `folder`."""
    write(folder, stored(model), **facts)


def write(folder: Path, model: Stored, **facts: Any) -> None:
    """Write a model to `folder`, every array in its own type."""
    arrays.write(folder, model.params, config=model.config.to_dict(), **facts)


def config(folder: Path) -> LlamaConfig:
    """The configuration of the model in `folder`. Raises arrays.Corrupt where the folder is incomplete."""
    return LlamaConfig(**arrays.facts(folder)["config"])


def read(folder: Path) -> Stored:
    """The model in `folder`, in the types it was written in. Raises arrays.Corrupt where the folder is incomplete."""
    shape = config(folder)
    return Stored(shape, nested(shape, arrays.read(folder)))


def nested(config: LlamaConfig, named: dict[str, np.ndarray]) -> dict[str, Any]:
    """Arrays by their path → the nested dicts of a network of this shape."""
    return arrays.unflatten(nnx.to_pure_dict(abstract(config)[1]), named)


def stored(model: Llama) -> Stored:
    """The stored form of a network."""
    return Stored(model.config, jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Param))))


def network(model: Stored, compute: Compute | None = None) -> Llama:
    """The network with these weights, as float32."""
    graph, state = abstract(model.config, compute)
    return build(graph, state, jax.tree.map(lambda array: jax.numpy.asarray(array, "float32"), model.params))


def load(folder: Path, compute: Compute | None = None) -> Llama:
    """The network of the model in `folder`, as float32. Raises arrays.Corrupt where the folder is incomplete."""
    return network(read(folder), compute)
