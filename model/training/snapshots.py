"""The weights along a training, to see how it learned: sparse, in half the bytes, and kept whatever checkpoints go."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model import arrays
from model.files import committed_steps, disk_full
from model.training import distributed
from model.training.job import Job
from model.training.records import SNAPSHOTS, Event


def taken(folder: Path) -> list[int]:
    """The steps whose weights are in a training's folder, in their order."""
    return committed_steps(folder / SNAPSHOTS)


class Snapshots:
    """A folder of weights for each of some steps, bfloat16, readable by `weights.load`; written beside the step loop.

    A snapshot that would leave no room for a checkpoint is left out, and training goes on. Of several processes one
    writes.
    """

    def __init__(self, job: Job, note: Callable[..., None]):
        """`note(event, step, …)` logs what happens here."""
        self.folder, self.model, self.note = Path(job.folder), job.model, note
        self.steps = frozenset(job.recipe.snapshot_steps())
        self._writing: tuple[int, arrays.Background] | None = None

    def due(self, step: int) -> bool:
        """Are the weights of this step to be kept, and not there yet?"""
        if step not in self.steps:
            return False
        return bool(distributed.broadcast_from_writer(not arrays.committed(self._place(step))))

    def take(self, step: int, params: Any, checkpoint: int) -> None:
        """Begin to write the weights, which are those of `step`, once the snapshot before is written. `checkpoint`:
        bytes of one, for which room is left."""
        self.wait()
        if not distributed.broadcast_from_writer(self._room(step, params, checkpoint)):
            return
        halves = ((name, _halved(leaf)) for name, leaf in arrays.flatten(params).items())
        # Each is waited for before the next is made: a device has little room left.
        named = {name: np.asarray(half) for name, half in distributed.copies_for_writer(halves)}
        if distributed.is_writer():
            background = arrays.Background(self._place(step), named, step=step, config=self.model.to_dict())
            self._writing = step, background

    def wait(self) -> None:
        """Wait until the snapshot that is being written is committed."""
        if self._writing is None:
            return
        (step, writing), self._writing = self._writing, None
        try:
            writing.join()
        except Exception as error:
            if not disk_full(error):
                raise
            self._left_out(step, str(error).splitlines()[0])

    def drop_after(self, step: int) -> None:
        """Remove those of later steps, which will be trained again on other data."""
        self.wait()
        if distributed.is_writer():
            for later in taken(self.folder):
                if later > step:
                    (self._place(later) / arrays.COMMIT).unlink()  # first, so that half of it never counts
                    shutil.rmtree(self._place(later))

    def _place(self, step: int) -> Path:
        return self.folder / SNAPSHOTS / str(step)

    def _room(self, step: int, params: Any, checkpoint: int) -> bool:
        self.folder.mkdir(parents=True, exist_ok=True)
        needed, free = arrays.size(params) // 2 + checkpoint, shutil.disk_usage(self.folder).free
        if free < needed:
            self._left_out(step, f"it and a checkpoint need {needed / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free")
        return free >= needed

    def _left_out(self, step: int, cause: str) -> None:
        self.note(Event.SAVE_FAILED, step, cause=f"the snapshot is left out: {cause}")


@jax.jit
def _halved(leaf: jax.Array) -> jax.Array:
    return leaf.astype(jnp.bfloat16)
