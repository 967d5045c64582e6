"""A model on disk between two stages: the network's configuration and its weights, whole and checked."""

from pathlib import Path
from typing import Any

import jax
from flax import nnx

from model import arrays
from model.config import Compute, LlamaConfig
from model.llama import Llama


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
    arrays.write(folder, nnx.to_pure_dict(nnx.state(model, nnx.Param)), config=model.config.to_dict(), **facts)


def load(folder: Path, compute: Compute | None = None) -> Llama:
    """Read the model that `save` wrote. Raises `arrays.Broken` where it is not whole."""
    graph, state = abstract(LlamaConfig(**arrays.facts(folder)["config"]), compute)
    pure = nnx.to_pure_dict(state)
    return build(graph, state, unflatten_on_device(pure, arrays.read(folder)))


def unflatten_on_device(template: Any, named: dict[str, Any]) -> Any:
    return jax.tree.map(jax.numpy.asarray, arrays.unflatten(template, named))
