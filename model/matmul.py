"""x · W, with a backward pass that XLA computes well on a CPU.

Letters in names: I inputs, O outputs.
"""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def matmul(x: jax.Array, kernel_IO: jax.Array) -> jax.Array:
    """`[…, inputs] · [inputs, outputs]`, in the type of `x`.

    The gradient of the kernel needs `x` transposed. Without a barrier, XLA recomputes `x` there and writes it column by
    column: with SwiGLU's product as `x` that took a third of a training step (bench/LOG.md). The barrier makes the
    gradient read the `x` of the forward pass.
    """
    return x @ kernel_IO.astype(x.dtype)


def _forward(x: jax.Array, kernel_IO: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # Not `matmul` again: a remat policy that keeps products would see a call that it knows nothing of.
    return x @ kernel_IO.astype(x.dtype), (x, kernel_IO)


def _backward(saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel_IO = saved
    dx = jnp.einsum("...o,io->...i", dy, kernel_IO.astype(dy.dtype))
    dkernel_IO = jnp.einsum("...i,...o->io", jax.lax.optimization_barrier(x), dy)
    return dx, dkernel_IO.astype(kernel_IO.dtype)


matmul.defvjp(_forward, _backward)
