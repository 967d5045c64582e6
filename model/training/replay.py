"""Steps computed twice: what memory or a processor got wrong since the last checkpoint differs from them.

It needs steps that have the same bits each time: on CPUs they have, on GPUs with deterministic operations.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from model import arrays
from model.training.records import Event, read_events
from model.training.training import Training

FOUND = {Event.REPLAY, Event.WRONG_BITS}
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
    """Compares steps of a training of one process with the same steps computed again."""

    def __init__(self, training: Training):
        self.training = training
        self._fingerprint = jax.jit(fingerprint, out_shardings=NamedSharding(training.mesh, P()))
        events = read_events(training.folder)
        times = [record.time for record in events if record.event in FOUND] or [r.time for r in events[:1]]
        self.last = times[-1] if times else time.time()  # when steps were compared last, in whatever attempt
        self.works = True  # False: this device does not compute the same bits each time

    def due(self) -> bool:
        """Is it time for one?"""
        return self.works and time.time() - self.last > 60 * self.training.recipe.replay_every_minutes

    def __call__(self, beat: Callable[[str, int], None], stopped: Callable[[], bool] = lambda: False) -> None:
        """Train the steps since the newest checkpoint again; `beat(phase, step)` is called before each.

        Where the result differs, they are trained a third time, and the training goes on with what came out twice.
        Logs what was found. Where the checkpoint cannot be read, nothing is done. Once it is `stopped`, the training
        is left at the step that was reached. To be called while nothing is being written.
        """
        step, saved = self.training.step, max(self.training.checkpoints.steps(), default=0)
        first = self._bits()
        if not saved or not self._again(saved, step, beat, stopped):
            return
        second, self.last = self._bits(), time.time()
        names = sorted(name for name in first if first[name] != second[name])
        if not names:
            self.training.note(Event.REPLAY, step, since=saved)
            return
        if not self._again(saved, step, beat, stopped):
            return
        third = self._bits()
        listed = f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
        cause = f"the steps since {saved:,}, computed again, have other bits in {len(names)} arrays ({listed}); "
        self.works = third in (first, second)
        if third == second:
            cause += "they came out twice, and the training goes on with them"
            self.training.snapshots.drop_after(saved)
        elif third == first:
            cause += "a third time they have the first ones, and the training goes on with these"
        else:
            cause += "a third time others: this device does not compute the same each time, and replays end"
        self.training.note(Event.WRONG_BITS, step, cause=cause, since=saved, arrays=names)

    def _again(self, saved: int, step: int, beat: Callable[[str, int], None], stopped: Callable[[], bool]) -> bool:
        """Take the checkpoint of step `saved`, and train to `step`; False where that was not reached."""
        beat("save", step)
        try:
            self.training.go_back(saved)
        except arrays.Corrupt:  # the next save, or the next attempt, has to do with it
            return False
        for number in range(saved, step):
            if stopped():
                return False
            beat("replay", step)
            self.training.advance(self.training.batch(number))["loss"].block_until_ready()
        return True

    def _bits(self) -> dict[str, list[int]]:
        """The fingerprint of each array, as each device has it: a copy may differ from the others."""
        return {
            name: [int(shard.data) for shard in value.addressable_shards]
            for name, value in self._fingerprint(self.training.state).items()
        }
