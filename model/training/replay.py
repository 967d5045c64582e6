"""Steps computed twice: what memory or a processor got wrong since the last checkpoint differs from them.

It needs steps that have the same bits each time: on CPUs they have, on GPUs with deterministic operations.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from model import arrays
from model.training import distributed
from model.training.records import Event
from model.training.training import Training

ODD = 2654435761  # Knuth's multiplicative hash, 2³² over the golden ratio


def fingerprint(state: Any) -> dict[str, Any]:
    """A number of 32 bits for each array, by its name, that no change of a single element leaves as it is.

    It is a sum of integers, so that its order, and how the array is spread over devices, change nothing.
    """
    return {name: _sum_of_bits(leaf) for name, leaf in arrays.flatten(state).items()}


def _sum_of_bits(array: jax.Array) -> jax.Array:
    """Σ bits(x_i) · w_i mod 2³²; every w_i is odd, so that a change of one element changes the sum."""
    bits = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * array.dtype.itemsize}")).astype(jnp.uint32)
    weight = jnp.ones_like(bits)
    for axis in range(array.ndim):
        weight = weight * jnp.uint32(ODD) + 2 * jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
    return jnp.sum(bits * weight, dtype=jnp.uint32)


class Replay:
    """Compares steps of a training with the same steps computed again."""

    def __init__(self, training: Training):
        self.training = training
        self._fingerprint = jax.jit(fingerprint, out_shardings=NamedSharding(training.mesh, P()))

    def __call__(self, beat: Callable[[str, int], None]) -> bool:
        """Train the steps since the newest checkpoint again; `beat(phase, step)` is called before each.

        Where the result differs, they are trained a third time, and the training goes on with what came out twice.
        Logs what was found. False where all three differ: this device does not compute the same bits each time.
        Every process must call it, at the same step, while nothing is being written.
        """
        step = self.training.step
        saved = distributed.broadcast_from_writer(max(self.training.checkpoints.steps(), default=0))
        first = self._bits()
        if not saved or not self._again(saved, step, beat):
            return True
        second = self._bits()
        names = sorted(name for name in first if first[name] != second[name])
        if not names:
            self.training.note(Event.REPLAY, step, since=saved)
            return True
        if not self._again(saved, step, beat):
            return True
        third = self._bits()
        listed = f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
        cause = f"the steps since {saved:,}, computed again, have other bits in {len(names)} arrays ({listed}); "
        if third == second:
            cause += "they came out twice, and the training goes on with them"
        elif third == first:
            cause += "a third time they have the first ones, and the training goes on with these"
        else:
            cause += "a third time others: this device does not compute the same each time, and replays end"
        self.training.note(Event.WRONG_BITS, step, cause=cause, since=saved, arrays=names)
        return third in (first, second)

    def _again(self, saved: int, step: int, beat: Callable[[str, int], None]) -> bool:
        """Take the checkpoint of step `saved`, and train to `step`; False where it is corrupt and an older one was
        taken: the training goes on from there."""
        beat("save", saved)
        self.training.restore()
        intact = self.training.step == saved
        for number in range(self.training.step, step):
            beat("replay", number)
            self.training.advance(self.training.batch(number))["loss"].block_until_ready()
        return intact

    def _bits(self) -> dict[str, int]:
        return {name: int(value) for name, value in self._fingerprint(self.training.state).items()}
