"""The weights along a training, to see how it learned: sparse, in half the bytes, and kept whatever checkpoints go."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from model import arrays
from model.files import disk_full
from model.training import distributed
from model.training.job import Job
from model.training.records import Event

SNAPSHOTS = "snapshots"


def taken(folder: Path) -> list[int]:
    """The steps whose weights are in a training's folder, in their order."""
    places = (folder / SNAPSHOTS).glob("*")
    return sorted(int(place.name) for place in places if place.name.isdigit() and arrays.committed(place))


class Snapshots:
    """A folder of weights for each of some steps, bfloat16, readable by `weights.load`; written beside the step loop.

    A snapshot that finds no room is left out, and training goes on. Of several processes one writes.
    """

    def __init__(self, job: Job, note: Callable[..., None]):
        """`note(event, step, …)` logs what happens here."""
        self.folder, self.model, self.note = Path(job.folder), job.model, note
        self.steps = frozenset(job.recipe.snapshot_steps())
        self._writing: tuple[int, arrays.Background] | None = None

    def take(self, step: int, params: Any) -> None:
        """Begin to write the weights, which are those of `step`, if they are to be kept and are not there."""
        if step not in self.steps:
            return
        self.wait()
        place = self.folder / SNAPSHOTS / str(step)
        if not distributed.broadcast_from_writer(not arrays.committed(place)):
            return
        named = {}
        for name, leaf in arrays.flatten(_halved(params)).items():
            copy = distributed.copy_to_host(leaf)
            if distributed.is_writer():
                named[name] = copy
        if distributed.is_writer():
            self._writing = step, arrays.Background(place, named, step=step, config=self.model.to_dict())

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
            self.note(Event.SAVE_FAILED, step, cause=f"the snapshot: {str(error).splitlines()[0]}")

    def drop_after(self, step: int) -> None:
        """Remove those of later steps, which will be trained again on other data."""
        self.wait()
        if distributed.is_writer():
            for later in taken(self.folder):
                if later > step:
                    shutil.rmtree(self.folder / SNAPSHOTS / str(later))


@jax.jit
def _halved(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
