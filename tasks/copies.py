"""Copies of a training's checkpoints at a second place, made beside it: it neither waits for them nor needs them."""

import contextlib
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from model.errors import KodaError, one_line
from model.files import COMMIT, link, read_json
from model.training.records import CHECKPOINTS, JOB, Event, log_event, newest_step
from model.training.second_place import SecondPlace
from tasks.progress import log_line
from tasks.runs.run import BUILDING

EVERY = 2.0  # seconds between two looks for a new checkpoint
LONGEST_PAUSE = 60.0  # seconds between two tries at a place that cannot be reached
COPYING = threading.Lock()  # the copy that an attempt left under way ends before the next one's begins
LAST = 60.0  # seconds that the end of a training waits for its last copy


def address(copy_to: str, training: Path) -> str:
    """Where the checkpoints of the training in this folder of a run are copied to: below the run's name and what the
    training is built of, so that another training never goes on from them. Empty where they are not copied."""
    if not copy_to:
        return ""
    key = read_json(training / BUILDING)["key"] if (training / BUILDING).is_file() else "other"
    return f"{copy_to.rstrip('/')}/{training.parent.name}/{training.name}-{key[:12]}"


def forget_earlier(training: Path, second_place: str) -> None:
    """Remove the copies of a training that is to be built once more, and is set aside here.

    Raises KodaError where they cannot be removed: the new training would go on from them.
    """
    key = second_place.rpartition("-")[2][:8]
    begun = (training / JOB).is_file()
    if second_place and not begun and any(training.parent.glob(f"{training.name}.{key}*")):
        try:
            SecondPlace(second_place).clear()
        except Exception as error:
            raise KodaError(
                f"{training.name} is to be built once more, and the copies of the one before cannot be removed from "
                f"{second_place} ({one_line(error)}). Remove them, or set {training.name}.copy_to to another place."
            ) from error


@contextlib.contextmanager
def copied(training: Path, second_place: str) -> Iterator[None]:
    """Copy the newest checkpoint of a training, whenever there is a newer one, while the block lasts.

    Where it ends well the last copy is waited for; a restart, or a person who cancels, waits for none.
    """
    if not second_place:
        yield
        return
    copier = Copier(training, second_place)
    thread = threading.Thread(target=copier.work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        copier.done.set()
    thread.join(LAST)


class Copier:
    """Copies checkpoints until `done`, and tries again where the place does not take them."""

    def __init__(self, training: Path, second_place: str):
        self.training, self.second_place, self.done = training, second_place, threading.Event()
        self.copied = 0  # the newest step that is there; 0 while that is not known
        self.failing = self.undeletable = False

    def work(self) -> None:
        """Look for checkpoints and copy them."""
        pause = EVERY
        while True:
            over = self.done.wait(pause)
            with COPYING:
                pause = EVERY if self.copy_newest() else min(LONGEST_PAUSE, 2 * pause)
            if over:
                return

    def copy_newest(self) -> bool:
        """Copy the newest checkpoint, unless it is there; False where that failed."""
        step = newest_step(self.training)
        if step in (0, self.copied):
            return True
        kept = self.training.parent / f".{self.training.name}.copying" / str(step)
        try:
            place = SecondPlace(self.second_place)
            if not self.copied and step in place.steps():  # an earlier attempt copied it
                self.copied = step
                return True
            if not _keep(self.training / CHECKPOINTS / str(step), kept):
                return True  # a newer one has replaced it
            began = time.monotonic()
            place.put(kept)
        except Exception as error:  # each kind of place has exceptions of its own
            self._failed(step, one_line(error))
            return False
        finally:
            shutil.rmtree(kept.parent, ignore_errors=True)
        if not self.copied or self.failing:
            log_line(
                f"checkpoints are copied to {self.second_place}: step {step:,} in {time.monotonic() - began:.1f} s"
            )
        self.copied, self.failing = step, False
        try:
            place.prune(step)
        except Exception as error:
            if not self.undeletable:
                log_line(f"older copies in {self.second_place} cannot be removed, and stay: {one_line(error)}")
            self.undeletable = True
        return True

    def _failed(self, step: int, cause: str) -> None:
        # Once for each outage; a stage that is done has its event log among its outputs.
        if not self.failing and not self.done.is_set():
            log_event(self.training, Event.COPY_FAILED, step, cause=f"{self.second_place}: {cause}")
        self.failing = True


def _keep(checkpoint: Path, kept: Path) -> bool:
    """Link the files of a checkpoint, which a newer one may replace while it is copied; False where it has been."""
    shutil.rmtree(kept.parent, ignore_errors=True)
    try:
        link(checkpoint, kept)
    except (OSError, shutil.Error):
        if not (checkpoint / COMMIT).is_file():
            return False
        raise
    return (checkpoint / COMMIT).is_file()
