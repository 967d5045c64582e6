from dataclasses import replace

import jax
from flax import nnx

from model.llama import Llama
from tests.conftest import SHAPE


def shaken(**changed: object) -> Llama:
    """Random weights, none of the norms' scales 1, with groups of two query heads."""
    network, draw = Llama(replace(SHAPE, **changed), rngs=nnx.Rngs(4)), nnx.Rngs(5)  # type: ignore[arg-type]
    state = jax.tree.map(lambda p: p + 0.2 * jax.random.normal(draw(), p.shape), nnx.state(network, nnx.Param))
    nnx.update(network, state)
    return network
