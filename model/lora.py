"""Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685): a small trainable update beside each frozen matrix.

Letters in names: L layers, I inputs, O outputs.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx

from model.config import LORA_TARGETS
from model.llama import Linear, Llama


class Lora(nnx.Module):
    """x · A · B · (alpha / rank): A `[layers, inputs, rank]`, B `[layers, rank, outputs]`, B zero at the start."""

    def __init__(self, kernel_LIO: jax.Array, rank: int, alpha: float, *, rngs: nnx.Rngs):
        layers, inputs, outputs = kernel_LIO.shape
        bound = inputs**-0.5
        self.a = nnx.LoRAParam(jax.random.uniform(rngs.params(), (layers, inputs, rank), minval=-bound, maxval=bound))
        self.b = nnx.LoRAParam(jnp.zeros((layers, rank, outputs)))
        self.scale = alpha / rank

    def __call__(self, x: jax.Array) -> jax.Array:
        return (x @ self.a.astype(x.dtype)) @ self.b.astype(x.dtype) * self.scale


def adapted(model: Llama, targets: tuple[str, ...]) -> Iterator[tuple[str, Linear]]:
    """The stacked matrices with these PEFT names."""
    for name in targets:
        part, matrix = LORA_TARGETS[name]
        yield name, getattr(getattr(model.layers, part), matrix)


def add_lora(model: Llama, rank: int, alpha: float, targets: tuple[str, ...], *, rngs: nnx.Rngs) -> None:
    """Add an update, zero at the start, beside each target matrix."""
    for _, linear in adapted(model, targets):
        linear.lora = Lora(linear.kernel[...], rank, alpha, rngs=rngs)


def merge_lora(model: Llama) -> None:
    """Add each update to its matrix and remove the adapters; the network's function stays the same."""
    for _, linear in adapted(model, tuple(LORA_TARGETS)):
        if isinstance(linear.lora, Lora):
            a_LIR, b_LRO = linear.lora.a[...], linear.lora.b[...]
            # A GPU would multiply float32 in TF32, with the precision of float16.
            update_LIO = jnp.einsum("lir,lro->lio", a_LIR, b_LRO, precision="highest") * linear.lora.scale
            linear.kernel[...] = linear.kernel[...] + update_LIO
            linear.lora = None
