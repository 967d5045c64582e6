"""The checkpoints of one training: saved beside the step loop, committed, and restored newest first."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from model import arrays
from model.errors import KodaError


class Checkpoints:
    """A folder with one committed folder for each saved step.

    `permanent` saves are kept, the newest `keep` of them; a temporary one goes when a newer save is committed. The
    newest committed one is never removed.
    """

    def __init__(self, folder: Path, fingerprint: str, keep: int, note: Callable[..., None]):
        """`fingerprint` names the data that the steps read; `note(event, step, …)` hears of what happens here."""
        self.folder, self.fingerprint, self.keep, self.note = folder, fingerprint, keep, note
        self._writing: tuple[int, arrays.Background] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def steps(self) -> list[int]:
        """The committed steps, oldest first."""
        return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdigit() and arrays.committed(p))

    def save(self, step: int, state: Any, *, permanent: bool, **facts: Any) -> None:
        """Begin to write `state`; the step loop may go on. A save still under way is waited for first."""
        self.wait()
        if step in self.steps():
            return
        target = self.folder / str(step)
        writing = arrays.Background(
            target, state, step=step, fingerprint=self.fingerprint, permanent=permanent, **facts
        )
        self._writing = step, writing

    def wait(self) -> None:
        """Wait until the save under way is committed, then remove what it makes superfluous."""
        if self._writing is None:
            return
        (step, writing), self._writing = self._writing, None
        writing.join()
        self.note("saved", step)
        self._prune()

    def restore(self, template: Any) -> tuple[int, Any] | None:
        """The newest whole checkpoint as `(step, arrays in the shape of template)`; None where there is none.

        One that is broken is set aside by renaming it, and the next older one is tried. Raises KodaError where the
        checkpoint was trained on other data.
        """
        for step in reversed(self.steps()):
            folder = self.folder / str(step)
            try:
                facts = arrays.facts(folder)
                if facts["fingerprint"] != self.fingerprint:
                    raise KodaError(
                        f"{folder} was trained on other data (fingerprint {facts['fingerprint']}) than there is now "
                        f"({self.fingerprint}): the text, the tokenizer, the context or the batch has changed. "
                        "Give this run another --name."
                    )
                named = arrays.read(folder)
                return step, arrays.unflatten(template, _shaped(named, template, folder))
            except arrays.Broken as broken:
                aside = folder.with_name(f"{step}.broken")
                while aside.exists():
                    aside = aside.with_name(aside.name + "-again")
                folder.rename(aside)
                self.note("broken checkpoint", step, cause=str(broken), set_aside=aside.name)
        return None

    def _prune(self) -> None:
        steps = self.steps()
        permanent = [step for step in steps if arrays.facts(self.folder / str(step))["permanent"]]
        keep = {steps[-1], *permanent[-self.keep :]}
        for step in steps:
            if step not in keep:
                (self.folder / str(step) / arrays.COMMIT).unlink()  # first, so that half of it never counts
                shutil.rmtree(self.folder / str(step))


def _shaped(named: dict[str, np.ndarray], template: Any, folder: Path) -> dict[str, np.ndarray]:
    for name, leaf in arrays.flatten(template).items():
        if name not in named or named[name].shape != leaf.shape:
            has = named[name].shape if name in named else "nothing"
            raise KodaError(f"{folder} holds {has} for {name}, this model needs {leaf.shape}: another model's run.")
    return named
