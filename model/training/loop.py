"""One life of a training: from the newest checkpoint to a given step, and a committed checkpoint at its end."""

import contextlib
import signal
import time
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax

from model.errors import KodaError
from model.files import hold
from model.training import goodput, processes
from model.training.job import Job
from model.training.numbers import BAD_STEPS, Judge
from model.training.protocol import DONE, PREEMPTED, ROLLED_BACK, Heartbeat
from model.training.training import Training

RETRY = 30.0  # seconds after which a save that found no room is tried again
LEAVING = 60.0  # seconds that a trainer is waited for which is about to leave


def train(job: Job, until: int, began: float) -> int:
    """Resume, train to step `until`, save; returns the exit code. `began`: when this process did."""
    processes.join()
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if processes.writes():
            stack.enter_context(_held(folder))
            goodput.record(folder)
        heart = Heartbeat(folder, began, processes.writes())
        heart.beat("start", 0)
        if job.cache:
            jax.config.update("jax_compilation_cache_dir", job.cache)
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        life = Life(Training(job), heart)
        if processes.alone():  # among several, JAX listens for the signal and tells the others
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, life.stop)
        with jax.set_mesh(life.training.mesh):
            code = life.run(until)
        heart.beat("save", life.training.step)
        if processes.writes():
            goodput.record(folder)
        return code


def _held(folder: Path) -> IO[str]:
    """The folder's lock. One who was told to leave and is still saving is waited for, however long that takes."""
    while True:
        try:
            return hold(folder / ".trainer.lock", f"the training in {folder}", LEAVING)
        except KodaError:
            beat = Heartbeat.read(folder)
            if beat is None or beat["phase"] != "save":
                raise


class Finished(NamedTuple):
    """A step whose numbers nobody has looked at yet."""

    step: int
    metrics: dict[str, jax.Array]
    waited: float  # seconds that the device had nothing to do for want of data


class Life:
    """The loop, and what is true of this process only."""

    def __init__(self, training: Training, heart: Heartbeat):
        self.training, self.recipe, self.heart = training, training.recipe, heart
        self.judge = Judge(training.recipe.spike_deviations)
        self.stop_asked = False
        self.saved_at = time.monotonic()

    def stop(self, *_: Any) -> None:
        """Save after this step, and leave."""
        self.stop_asked = True

    def run(self, until: int) -> int:
        """Train to step `until` and return the exit code."""
        step = self.heart.first_step = self.training.resume()
        if step >= until:  # a later life finds an earlier segment done
            return DONE
        self.heart.beat("compile", step)
        pending: Finished | None = None
        due = ""
        while step < until and not processes.told_to_stop(step, self.stop_asked):
            batch, waited = self._read(step, pending)
            self.training.state, metrics = self.training.update(self.training.state, self.training.frozen, batch)
            step += 1
            if self._spoilt(pending, step):  # looked at one step late, so that the device has its next step meanwhile
                return ROLLED_BACK
            pending = Finished(step, metrics, waited)
            self.heart.beat("train", step)
            self.training.checkpoints.tend()
            due = self._due(step) or due
            if step < until and due:
                if self._spoilt(pending, step):
                    return ROLLED_BACK
                pending = None
                if (
                    not self.judge.in_a_row
                ):  # a state among bad steps is none to go back to: the save waits for a good one
                    self._save(step, permanent=due == "permanent")
                    due = ""
            if step < until and step % self.recipe.evaluate_every_steps == 0:
                self._evaluate(step)
        if self._spoilt(pending, step):
            return ROLLED_BACK
        if step == until:
            self._save_at_last(step, permanent=True, heldout_loss=self._evaluate(step))
        elif not self.judge.in_a_row:
            self._save_at_last(step, permanent=False)
        self.training.note("done" if step == until else "preemption", step)
        return DONE if step == until else PREEMPTED

    def _read(self, step: int, pending: Finished | None) -> tuple[Any, float]:
        """The batch of a step, and how long the device waited for it: not at all while it had the step before to do."""
        began = time.perf_counter()
        batch = self.training.batch(step)
        idle = pending is not None and pending.metrics["loss"].is_ready()  # type: ignore[attr-defined]
        waited = time.perf_counter() - began if idle else 0.0
        if idle:
            self.heart.spend("data", waited)
        return batch, waited

    def _spoilt(self, finished: Finished | None, step: int) -> bool:
        """Look at a finished step, if there is one; True where it was one bad step too many, and `step` goes back."""
        cause = self._look(finished) if finished is not None else ""
        if self.judge.in_a_row == BAD_STEPS:
            self.training.step_over(step, f"{BAD_STEPS} bad steps in a row, the last: {cause}")
        return self.judge.in_a_row == BAD_STEPS

    def _look(self, finished: Finished) -> str:
        """Judge the numbers of a finished step, and write them down; returns what is bad about them, if anything."""
        values = {name: float(value) for name, value in finished.metrics.items()}
        finite = bool(values.pop("finite"))
        step, self.heart.loss = finished.step, values["loss"] if finite else self.heart.loss
        cause = self.judge(values["loss"], finite)
        if cause:
            told = {name: str(value) for name, value in values.items()}
            self.training.note("spike" if finite else "skipped", step, cause=cause, **told)
        if finite and step % self.recipe.log_every_steps == 0:
            self.training.metrics(
                step,
                **values,
                learning_rate=float(self.training.schedule(step - 1)),
                tokens=step * self.recipe.batch_size * self.training.job.sequence_length,
                data_seconds=finished.waited,
            )
        return cause

    def _due(self, step: int) -> str:
        """Is it time for a save, permanent or temporary? Of several processes one looks at the clock, and not at each
        step, for the others have to hear of it."""
        if step % self.recipe.save_every_steps == 0:
            return "permanent"
        if not processes.alone() and step % self.recipe.log_every_steps:
            return ""
        patience = 60 * self.recipe.save_every_minutes
        if self.training.checkpoints.failing_since is not None:
            patience = min(patience, RETRY)
        return "temporary" if processes.agreed(time.monotonic() - self.saved_at > patience) else ""

    def _save(self, step: int, *, permanent: bool, **facts: Any) -> None:
        self.heart.beat("save", step)
        self.training.save(step, permanent=permanent, **facts)
        self.saved_at = time.monotonic()
        self.heart.turn("train")

    def _save_at_last(self, step: int, **facts: Any) -> None:
        """Save, wait for it, and where there is no room try again until Checkpoints has had enough of it."""
        while True:
            self._save(step, **facts)
            self.heart.beat("save", step)
            self.training.checkpoints.wait()
            if processes.agreed(step in self.training.checkpoints.steps()):
                return
            time.sleep(min(RETRY, 60 * self.recipe.full_disk_minutes))

    def _evaluate(self, step: int) -> float:
        """The held-out loss, also as a line of the metrics."""
        self.heart.beat("evaluate", step)
        value = self.training.heldout_loss(lambda: self.heart.beat("evaluate", step))
        self.training.metrics(step, heldout_loss=value)
        self.heart.turn("train")
        return value
