"""One attempt at a training: from the newest checkpoint to a given step, and a committed checkpoint at its end."""

import contextlib
import signal
import time
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax

from model.errors import KodaError
from model.exit_codes import DONE, PREEMPTED, ROLLED_BACK
from model.files import lock_file
from model.training import distributed, goodput
from model.training.bad_steps import BAD_STEPS, BadStepDetector
from model.training.cadence import Cadence
from model.training.heartbeat import Heartbeat
from model.training.job import Job
from model.training.records import Event, HeldoutMetrics, TrainingMetrics
from model.training.replay import Replay
from model.training.stragglers import Stragglers
from model.training.training import Training

RETRY = 30.0  # seconds after which a save that found no room is tried again
LEAVING = 60.0  # seconds to wait for a trainer that is about to leave


def train(job: Job, until: int, began: float) -> int:
    """Resume, train to step `until`, save; returns the exit code. `began`: when this process did."""
    distributed.initialize()
    distributed.check_devices()
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if distributed.is_writer():
            stack.enter_context(_lock(folder))
            goodput.record(folder)
        heart = Heartbeat(folder, began, distributed.is_writer())
        heart.beat("start", 0)
        if job.cache:
            jax.config.update("jax_compilation_cache_dir", job.cache)
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        attempt = Attempt(Training(job), heart)
        if distributed.is_single():  # among several, JAX listens for the signal and informs the others
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, attempt.stop)
        with jax.set_mesh(attempt.training.mesh):
            code = attempt.run(until)
        heart.beat("save", attempt.training.step)
        if distributed.is_writer():
            goodput.record(folder)
        return code


def _lock(folder: Path) -> IO[str]:
    """The folder's lock. A trainer that was stopped and is still saving is waited for, however long that takes."""
    while True:
        try:
            return lock_file(folder / ".trainer.lock", f"the training in {folder}", LEAVING)
        except KodaError:
            beat = Heartbeat.read(folder)
            if beat is None or beat["phase"] != "save":
                raise


class Unchecked(NamedTuple):
    """A step whose numbers have not been checked yet."""

    step: int
    metrics: dict[str, jax.Array]
    waited: float  # seconds that the device had nothing to do because data was late


class Attempt:
    """The loop, and what is true of this process only."""

    def __init__(self, training: Training, heart: Heartbeat):
        self.training, self.recipe, self.heart = training, training.recipe, heart
        self.bad_steps = BadStepDetector(training.recipe.spike_deviations)
        self.stop_asked = False
        self.saved_at = time.monotonic()
        self.stragglers = None if distributed.is_single() else Stragglers(training.note)
        self.replay = Replay(training) if training.recipe.replay_every_minutes and distributed.is_single() else None
        longest = 60 * self.recipe.save_every_minutes
        self.cadence = Cadence(self.recipe.save_share, self.recipe.disk_share, longest)

    def stop(self, *_: Any) -> None:
        """Save after this step, and leave."""
        self.stop_asked = True

    def run(self, until: int) -> int:
        """Train to step `until` and return the exit code."""
        self.training.checkpoints.beat = lambda: self.heart.beat("start", 0)
        step = self.heart.first_step = self.training.resume()
        if step >= until:  # a later attempt finds an earlier segment done
            return DONE
        self.heart.beat("compile", step)
        self.training.settle(distributed.device_memory())
        if (form := self.training.program.job.compute) != self.training.job.compute:
            self.training.note(Event.FORM, step, remat=form.remat, scan=form.scan)
        self._keep_weights(step, "compile")
        pending: Unchecked | None = None
        due = ""
        while step < until and not distributed.should_stop(step, self.stop_asked):
            batch, waited = self._read(step, pending)
            metrics = self.training.advance(batch)
            step += 1
            if self._too_many_bad(
                pending, step
            ):  # looked at one step late, so that the device has its next step meanwhile
                return ROLLED_BACK
            pending = Unchecked(step, metrics, waited)
            self.heart.beat("train", step)
            self.cadence.step(time.monotonic())
            self._keep_weights(step, "train")
            self._finish_completed_save()
            due = self._due(step) or due
            if step < until and due:
                if self._too_many_bad(pending, step):
                    return ROLLED_BACK
                pending = None
                if not self.bad_steps.in_a_row:  # a state among bad steps is not one to return to: wait for a good one
                    step = self._replay(step)
                    self._save(step, permanent=due == "permanent" and step % self.recipe.save_every_steps == 0)
                    due = ""
            if step < until and step % self.recipe.evaluate_every_steps == 0:
                self._evaluate(step)
        if self._too_many_bad(pending, step):
            return ROLLED_BACK
        if step == until:
            self._save_at_last(step, permanent=True, heldout_loss=self._evaluate(step))
        elif not self.bad_steps.in_a_row:
            self._save_at_last(step, permanent=False)
        self.training.note(Event.DONE if step == until else Event.PREEMPTION, step)
        return DONE if step == until else PREEMPTED

    def _read(self, step: int, pending: Unchecked | None) -> tuple[Any, float]:
        """The batch of a step, and how long the device waited for it: not at all while it had the step before to do."""
        began = time.perf_counter()
        batch = self.training.batch(step)
        idle = pending is not None and pending.metrics["loss"].is_ready()  # type: ignore[attr-defined]
        waited = time.perf_counter() - began if idle else 0.0
        if idle:
            self.heart.spend("data", waited)
        return batch, waited

    def _too_many_bad(self, finished: Unchecked | None, step: int) -> bool:
        """Check a finished step, if there is one; True where there were too many bad ones and it rolls back."""
        cause = self._check(finished) if finished is not None else ""
        if self.bad_steps.in_a_row == BAD_STEPS:
            self.training.step_over(step, f"{BAD_STEPS} bad steps in a row, the last: {cause}")
        return self.bad_steps.in_a_row == BAD_STEPS

    def _check(self, finished: Unchecked) -> str:
        """Check the numbers of a finished step and log them; returns what is bad about them, if anything."""
        values = {name: float(value) for name, value in finished.metrics.items()}
        finite = bool(values.pop("finite"))
        step, self.heart.loss = finished.step, values["loss"] if finite else self.heart.loss
        cause = self.bad_steps(values["loss"], finite)
        if cause:
            as_text = {name: str(value) for name, value in values.items()}  # JSON has no NaN
            self.training.note(Event.SPIKE if finite else Event.SKIPPED, step, cause=cause, **as_text)
        if finite and step % self.recipe.log_every_steps == 0:
            metrics = TrainingMetrics(
                step=step,
                time=time.time(),
                **values,
                learning_rate=self.training.learning_rate(step - 1),
                tokens=step * self.training.job.tokens_per_step,
                data_seconds=finished.waited,
            )
            self.training.log_metrics(metrics)
        return cause

    def _due(self, step: int) -> str:
        """Is it time for a save, permanent or temporary? Of several processes one looks at the clock, and not at each
        step, for it has to be sent to the others."""
        if step % self.recipe.save_every_steps == 0:
            return "permanent"
        if not distributed.is_single() and step % self.recipe.log_every_steps:
            return ""
        checkpoints = self.training.checkpoints
        patience = self.cadence.interval() if checkpoints.failing_since is None else RETRY
        due = not checkpoints.is_writing() and time.monotonic() - self.saved_at > patience
        return "temporary" if distributed.broadcast_from_writer(due) else ""

    def _save(self, step: int, *, permanent: bool, **facts: Any) -> None:
        self.heart.beat("save", step)
        self.training.wait_for_writes()
        self.saved_at = time.monotonic()  # the cost of this save is not what it waited for others
        self.training.save(step, permanent=permanent, **facts)
        self.cadence.began(self.saved_at, time.monotonic())
        self.heart.turn("train")

    def _replay(self, step: int) -> int:
        """Where it is time, compare with the steps since the last save, computed again; returns the step that the
        training is at, an earlier one where it was stopped meanwhile."""
        if self.replay is None or not self.replay.due():
            return step
        self.heart.beat("save", step)
        self.training.wait_for_writes()
        self.replay(self.heart.beat, lambda: self.stop_asked)
        self.cadence.interrupt()
        return self.training.step

    def _finish_completed_save(self) -> None:
        if self.training.checkpoints.finish_completed_save():
            self.cadence.committed(time.monotonic())
            self.heart.saves = self.cadence.figures()

    def _keep_weights(self, step: int, phase: str) -> None:
        """Take a snapshot where one is due. The wait for the one before is no sign that `phase` hangs."""
        if self.training.snapshots.due(step):
            self.heart.beat("save", step)
            self.training.take_snapshot(step)
            self.cadence.interrupt()
            self.heart.beat(phase, step)

    def _save_at_last(self, step: int, **facts: Any) -> None:
        """Save, wait for it, and where there is no room try again until Checkpoints gives up."""
        while True:
            self._save(step, **facts)
            self.heart.beat("save", step)
            self.training.checkpoints.wait()
            if distributed.broadcast_from_writer(step in self.training.checkpoints.steps()):
                return
            time.sleep(min(RETRY, 60 * self.recipe.full_disk_minutes))

    def _evaluate(self, step: int) -> float:
        """The held-out loss, also as a line of the metrics."""
        self.heart.beat("evaluate", step)
        self.cadence.interrupt()
        value = self.training.heldout_loss(lambda: self.heart.beat("evaluate", step))
        if self.stragglers is not None:
            self.stragglers.compare(step, self.heart.seconds.get("data", 0.0))
        self.training.log_metrics(HeldoutMetrics(step, time.time(), value))
        self.heart.turn("train")
        return value
