"""The checkpoints of one training: saved beside the step loop, committed, and restored newest first."""

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from model import arrays
from model.errors import KodaError, one_line
from model.files import committed_steps, disk_full
from model.training import distributed
from model.training.records import Event
from model.training.second_place import SecondPlace

SLACK = 1.05  # room that a save needs, as a multiple of the bytes of its arrays


class Checkpoints:
    """A folder with one committed folder for each saved step.

    `permanent` saves are kept, the newest `keep` of them; a temporary one goes when a newer save is committed. The
    newest committed one is never removed. A save that finds no room is given up, and training goes on: for `patience`
    seconds from the first such save on, then KodaError is raised. Of several processes one writes.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        note: Callable[..., None],
        *,
        keep: int,
        verify_every: int = 1,
        patience: float = 0.0,
        second_place: str = "",
    ):
        """`fingerprint` names the data that the steps read; `note(event, step, …)` logs what happens here.

        `second_place`: address of other checkpoints of this training, to restore from too.

        Each `verify_every`-th save is read back before it counts.
        """
        self.folder, self.fingerprint, self.note = folder, fingerprint, note
        self.keep, self.verify_every, self.patience = keep, verify_every, patience
        self.second_place = second_place
        self.failing_since: float | None = None
        self._saves = 0
        self.beat: Callable[[], None] = lambda: None  # called while a checkpoint is fetched
        self._writing: tuple[int, arrays.Background] | None = None
        self._new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)

    def steps(self) -> list[int]:
        """The committed steps, oldest first."""
        return committed_steps(self.folder)

    def save(self, step: int, state: Any, *, permanent: bool, **facts: Any) -> None:
        """Begin to write `state`; the step loop may go on. It waits for a save that is still under way first."""
        self.wait()
        if not distributed.broadcast_from_writer(step not in self.steps() and self._room(step, state)):
            return
        named: dict[str, Any] = dict(distributed.copies_for_writer(arrays.flatten(state).items()))
        if not distributed.is_writer():
            return
        self._saves += 1
        facts["saves"] = self._saves
        writing = arrays.Background(
            self.folder / str(step),
            named,
            verify=self._saves % self.verify_every == 0,
            step=step,
            fingerprint=self.fingerprint,
            permanent=permanent,
            **facts,
        )
        self._writing = step, writing

    def is_writing(self) -> bool:
        """Is a save under way?"""
        return self._writing is not None

    def finish_completed_save(self) -> bool:
        """Commit a save whose write has ended; returns at once where it has not. Was one committed?"""
        if self._writing is None or self._writing[1].is_alive():
            return False
        self.wait()
        return self.failing_since is None

    def wait(self) -> None:
        """Wait until the save under way is committed, then remove what it makes superfluous."""
        if self._writing is None:
            return
        (step, writing), self._writing = self._writing, None
        try:
            writing.join()
        except arrays.Corrupt as error:
            if not (self.folder / str(step)).exists():  # numbers that are not finite: nothing was written
                raise
            self._set_aside(step)
            self._failed(step, str(error))
            return
        except Exception as error:
            if not disk_full(error):
                raise
            self._failed(step, str(error).splitlines()[0])
            return
        self.failing_since = None
        if writing.facts["permanent"]:  # temporary ones are too many
            self.note(Event.SAVED, step)
        self._prune()

    def _room(self, step: int, state: Any) -> bool:
        needed, free = SLACK * arrays.size(state), shutil.disk_usage(self.folder).free
        if free < needed:
            self._failed(step, f"the save needs {needed / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free")
        return free >= needed

    def _failed(self, step: int, cause: str) -> None:
        self.note(Event.SAVE_FAILED, step, cause=cause)
        now = time.monotonic()
        self.failing_since = self.failing_since or now
        if now - self.failing_since >= self.patience:
            raise KodaError(
                f"the disk is full: for {self.patience / 60:.0f} min no checkpoint could be saved in {self.folder} "
                f"({cause}). The last good one, of step {max(self.steps(), default=0)}, is kept; make room, and the "
                "same command goes on."
            )

    def restore(self, template: Any) -> tuple[int, Any] | None:
        """The newest intact checkpoint as `(step, arrays in the shape of template)`; None where there is none.

        A corrupt one is set aside by renaming it, and the next older one is tried. Where the newest is corrupt, or none
        is here, those of the second place that are newer than what is intact here are tried first. Raises KodaError
        where the checkpoint was trained on other data, and where the folder is new and the second place does not reply.
        """
        newest = self._newest() if distributed.is_writer() else None
        step = distributed.broadcast_from_writer(newest[0] if newest else -1)
        if step < 0:
            return None
        folder = self.folder / str(step)
        named = newest[1] if newest else arrays.read(folder)
        return step, arrays.unflatten(template, _shaped(named, template, folder))

    def _newest(self) -> tuple[int, dict[str, np.ndarray]] | None:
        self._clear_unfinished()
        here = self.steps()[::-1]
        upto = here[0] if here else math.inf
        for step in here:
            # What the second place has above an intact one is of a timeline that was left.
            if step < here[0] and (found := self._newest_there(step, upto)) is not None:
                return found
            if (named := self._intact(step)) is not None:
                return step, named
            upto = step
        return self._newest_there(-1, upto)

    def _newest_there(self, above: int, upto: float) -> tuple[int, dict[str, np.ndarray]] | None:
        """The newest intact checkpoint of the second place with a step above the one and up to the other."""
        for step in reversed(self._steps_there()):
            fetched = above < step <= upto and self._fetch(step)
            if fetched and (named := self._intact(step, keep=False)) is not None:
                return step, named
        return None

    def _intact(self, step: int, keep: bool = True) -> dict[str, np.ndarray] | None:
        """The arrays of a checkpoint of this folder; None where it is corrupt: it is set aside, or not kept at all."""
        folder = self.folder / str(step)
        try:
            facts = arrays.facts(folder)
            if facts["fingerprint"] != self.fingerprint:
                raise KodaError(
                    f"{folder} was trained on other data (fingerprint {facts['fingerprint']}) than there is now "
                    f"({self.fingerprint}): the text, the tokenizer, the context or the batch has changed. "
                    "Give this run another --name."
                )
            self._saves = facts.get("saves", 0)  # an attempt is often too short to reach a save that is verified
            return arrays.read(folder)
        except arrays.Corrupt as error:
            aside = self._set_aside(step) if keep else ""
            if not keep:
                shutil.rmtree(folder)
            self.note(Event.CORRUPT, step, cause=str(error), set_aside=aside)
            return None

    def _steps_there(self) -> list[int]:
        """The steps that have a checkpoint at the second place; none where it cannot be reached."""
        if not self.second_place:
            return []
        try:
            return SecondPlace(self.second_place).steps()
        except Exception as error:  # each kind of place has exceptions of its own
            if self._new:
                self.folder.rmdir()
                raise KodaError(
                    f"{self.second_place} cannot be reached ({one_line(error)}), and may have the checkpoints of this "
                    "training, of which none are here. Try again, or begin at step 0 without copy_to."
                ) from error
            self.note(Event.COPY_FAILED, 0, cause=f"{self.second_place}: {one_line(error)}")
            return []

    def _fetch(self, step: int) -> bool:
        try:
            SecondPlace(self.second_place).get(step, self.folder, self.beat)
        except Exception as error:
            self.note(Event.COPY_FAILED, step, cause=f"{self.second_place}: {one_line(error)}")
            return False
        self.note(Event.FETCHED, step, cause=f"from {self.second_place}")
        return True

    def _set_aside(self, step: int) -> str:
        aside = self.folder / f"{step}.corrupt"
        while aside.exists():
            aside = aside.with_name(aside.name + "-again")
        (self.folder / str(step)).rename(aside)
        return aside.name

    def _clear_unfinished(self) -> None:
        """A folder without a commit file is what a killed save left, or a commit file that was lost. The newest such
        folder is kept under another name, for inspection."""
        for incoming in self.folder.glob(".*.incoming"):
            shutil.rmtree(incoming, ignore_errors=True)
        for folder in sorted(p for p in self.folder.iterdir() if p.name.isdigit() and not arrays.committed(p)):
            aside = self.folder / "unfinished"
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            self.note(Event.UNFINISHED, int(folder.name), cause="it has no commit file", set_aside=aside.name)

    def _prune(self) -> None:
        steps = self.steps()
        permanent = [step for step in steps if self._is_permanent(step)]
        keep = {steps[-1], *permanent[-self.keep :]}
        for step in steps:
            if step not in keep:
                (self.folder / str(step) / arrays.COMMIT).unlink()  # first, so that half of it never counts
                shutil.rmtree(self.folder / str(step))

    def _is_permanent(self, step: int) -> bool:
        try:
            return arrays.facts(self.folder / str(step))["permanent"]
        except arrays.Corrupt:
            return False


def _shaped(named: dict[str, np.ndarray], template: Any, folder: Path) -> dict[str, np.ndarray]:
    for name, leaf in arrays.flatten(template).items():
        if name not in named or named[name].shape != leaf.shape:
            has = named[name].shape if name in named else "nothing"
            raise KodaError(f"{folder} has {has} for {name}, this model needs {leaf.shape}: another model's run.")
    return named
