"""A model on disk between two stages: the network's configuration and its weights, whole and checked."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from model import arrays
from model.config import Compute, LlamaConfig
from model.llama import Llama


class Stored(NamedTuple):
    """A model as numbers: nested dicts of numpy arrays, in the types that they are stored in, and its shape.

    What reads and writes other programs' files works on this, so that a model is held in memory once.
    """

    config: LlamaConfig
    params: dict[str, Any]


def abstract(config: LlamaConfig, compute: Compute | None = None) -> tuple[nnx.GraphDef, nnx.State]:
    """The network without its numbers."""
    return nnx.split(nnx.eval_shape(lambda: Llama(config, compute, rngs=nnx.Rngs(0))))


def build(graph: nnx.GraphDef, state: nnx.State, *numbers: dict[str, Any]) -> Llama:
    """The network of `abstract` with these weights in it, given as nested dicts that complete one another."""
    merged = jax.tree.map(lambda leaf: leaf, state)
    for pure in numbers:
        nnx.replace_by_pure_dict(merged, pure)
    return nnx.merge(graph, merged)


def save(folder: Path, model: Llama, **facts: Any) -> None:
    """Write a model to `folder`."""
    write(folder, stored(model), **facts)


def write(folder: Path, model: Stored, **facts: Any) -> None:
    """Write a model to `folder`, every array in its own type."""
    arrays.write(folder, model.params, config=model.config.to_dict(), **facts)


def read(folder: Path) -> Stored:
    """Read what was written, in the types it was written in. Raises `arrays.Broken` where it is not whole."""
    config = LlamaConfig(**arrays.facts(folder)["config"])
    return Stored(config, nested(config, arrays.read(folder)))


def nested(config: LlamaConfig, named: dict[str, np.ndarray]) -> dict[str, Any]:
    """The nested dicts of a network of this shape, from its arrays by their path."""
    return arrays.unflatten(nnx.to_pure_dict(abstract(config)[1]), named)


def stored(model: Llama) -> Stored:
    """The numbers of a network."""
    return Stored(model.config, jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Param))))


def network(model: Stored, compute: Compute | None = None) -> Llama:
    """The network with these numbers in it, as float32."""
    graph, state = abstract(model.config, compute)
    return build(graph, state, jax.tree.map(lambda array: jax.numpy.asarray(array, "float32"), model.params))


def load(folder: Path, compute: Compute | None = None) -> Llama:
    """The network of `read`, computing."""
    return network(read(folder), compute)
