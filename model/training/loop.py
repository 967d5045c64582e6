"""The train loop: from the newest checkpoint to a given step, and a committed checkpoint at its end."""

import fcntl
import json
import signal
import time
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model import sharding, weights
from model.data.batches import Batches
from model.errors import KodaError
from model.files import finished, read_json, write_json
from model.llama import Llama
from model.lora import add_lora
from model.training import optimizer as optimizers
from model.training.checkpoints import Checkpoints
from model.training.job import Job
from model.training.protocol import (
    CHECKPOINTS,
    DONE,
    METRICS,
    PREEMPTED,
    ROLLED_BACK,
    WINDOWS,
    Heartbeat,
    append,
    event,
    lines,
)
from model.training.step import State, loss, make_step

BAD_STEPS = 5  # this many in a row with numbers that are not finite, and the training rolls back


class Training:
    """One life of a training: what it was told, what it has learned so far, and where it writes."""

    def __init__(self, job: Job):
        self.job, self.recipe, self.folder = job, job.recipe, Path(job.folder)
        self.heart = Heartbeat(self.folder)
        self.train = self._batches(job.train)
        self.heldout = self._batches(job.heldout)
        self.optimizer = optimizers.build(job.recipe)
        self.schedule = optimizers.schedule(job.recipe)
        model, self.frozen = self._begin()
        self.graph, self.abstract = nnx.split(model)
        params = nnx.to_pure_dict(nnx.state(model, nnx.LoRAParam if job.lora else nnx.Param))
        self.mesh = sharding.make_mesh(job.fsdp, job.tensor)
        sharding.check_rows(self.mesh, self.recipe.batch_size)
        self.frozen = sharding.place(self.mesh, self.frozen)
        self.state = sharding.place(self.mesh, State(jnp.int32(0), params, self.optimizer.init(params)))
        self.checkpoints = Checkpoints(
            self.folder / CHECKPOINTS,
            self.train.fingerprint(),
            self.recipe.keep_checkpoints,
            lambda name, step, **more: event(self.folder, name, step, **more),
        )
        self.update = make_step(self._rebuild, self.optimizer, self.recipe.z_loss)
        self.measure = jax.jit(lambda params, frozen, batch: loss(self._rebuild(params, frozen), batch)[1])
        self.windows: list[list[int]] = read_json(self.folder / WINDOWS) if (self.folder / WINDOWS).is_file() else []
        self.stop_asked = False
        self.saved_at = time.monotonic()

    def _batches(self, folder: str) -> Batches:
        return Batches(
            Path(folder),
            batch_size=self.recipe.batch_size,
            sequence_length=self.job.sequence_length,
            seed=self.recipe.seed,
            isolate=self.job.end_of_text if self.recipe.isolate_documents else None,
        )

    def _begin(self) -> tuple[Llama, Any]:
        """The network at step 0, and the part of its weights that stays as it is."""
        rngs = nnx.Rngs(self.recipe.seed)
        if self.job.init is None:
            return Llama(self.job.model, self.job.compute, rngs=rngs), {}
        model = weights.load(Path(self.job.init), self.job.compute)
        if self.job.lora is None:
            return model, {}
        add_lora(model, self.job.lora.rank, self.job.lora.alpha, self.job.lora.targets, rngs=rngs)
        return model, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.LoRAParam)))

    def _rebuild(self, params: Any, frozen: Any) -> Llama:
        return weights.build(self.graph, self.abstract, frozen, params)

    @property
    def step(self) -> int:
        return int(self.state.step)

    def cursor(self, step: int) -> int:
        """The batch that a step reads: its own number, and as many more as were stepped over before it."""
        return step + sum(count for start, count in self.windows if start <= step)

    def roll_back(self, step: int) -> int:
        """Have the next life go on from the last checkpoint, behind the data read since; returns the exit code."""
        self.checkpoints.wait()
        start = max(self.checkpoints.steps(), default=0)
        write_json(self.folder / WINDOWS, [*self.windows, [start, step - start]])
        batches = [self.cursor(start), self.cursor(start) + step - start]
        event(self.folder, "rollback", start, cause=f"{BAD_STEPS} steps in a row not finite", batches=batches)
        return ROLLED_BACK

    def resume(self) -> None:
        """Take the newest whole checkpoint, and leave out the metrics of steps that will now be done again."""
        step, restored = self.checkpoints.restore(self.state) or (0, self.state)
        self.state = sharding.place(self.mesh, restored)
        kept = [line for line in lines(self.folder / METRICS) if line["step"] <= step]
        with finished(self.folder / METRICS) as file:
            file.writelines(json.dumps(line) + "\n" for line in kept)
        event(self.folder, "resume" if step else "start", step)

    def run(self, until: int) -> int:
        """Train to step `until` and return the exit code."""
        step = self.step
        if step >= until:  # a later life finds an earlier segment done
            return DONE
        self.heart.beat("compile", step, until)
        pending: tuple[int, dict[str, jax.Array], float] | None = None
        bad = 0
        while step < until and not self.stop_asked:
            began = time.perf_counter()
            batch = sharding.place_rows(self.mesh, self.train[self.cursor(step)])
            waited = time.perf_counter() - began
            self.state, metrics = self.update(self.state, self.frozen, batch)
            step += 1
            if pending is not None:  # read one step late, so that the device has its next step while we look
                bad = self._log(*pending, bad)
                if bad == BAD_STEPS:
                    return self.roll_back(step)
            pending = step, metrics, waited
            self.heart.beat("train", step, until)
            if self._due(step) and step < until:
                self.save(step, until, permanent=step % self.recipe.save_every_steps == 0)
            if step % self.recipe.evaluate_every_steps == 0 and step < until:
                self.evaluate(step, until)
        if pending is not None:
            self._log(*pending, bad)
        heldout = self.evaluate(step, until) if step == until else None
        self.save(step, until, permanent=step == until, heldout_loss=heldout)
        self.checkpoints.wait()
        event(self.folder, "done" if step == until else "preemption", step)
        return DONE if step == until else PREEMPTED

    def _due(self, step: int) -> bool:
        by_clock = time.monotonic() - self.saved_at > 60 * self.recipe.save_every_minutes
        return by_clock or step % self.recipe.save_every_steps == 0

    def save(self, step: int, until: int, *, permanent: bool, **facts: Any) -> None:
        self.heart.beat("save", step, until)
        self.checkpoints.save(step, self.state, permanent=permanent, **facts)
        self.saved_at = time.monotonic()

    def evaluate(self, step: int, until: int) -> float:
        """Mean loss over the first `evaluate_rows` held-out rows, nats per token; also a line of the metrics."""
        self.heart.beat("evaluate", step, until)
        value = heldout_loss(self, self.recipe.evaluate_rows)
        append(self.folder / METRICS, {"step": step, "time": time.time(), "heldout_loss": value})
        return value

    def _log(self, step: int, metrics: dict[str, jax.Array], waited: float, bad: int) -> int:
        """Write the metrics of a finished step; returns how many bad steps there were in a row."""
        values = {name: float(value) for name, value in metrics.items()}
        finite = bool(values.pop("finite"))
        if not finite:
            event(
                self.folder,
                "skipped",
                step,
                cause="loss or gradient is not finite",
                **{k: str(v) for k, v in values.items()},
            )
            return bad + 1
        if step % self.recipe.log_every_steps == 0:
            append(
                self.folder / METRICS,
                {
                    "step": step,
                    "time": time.time(),
                    **values,
                    "learning_rate": float(self.schedule(step - 1)),
                    "tokens": step * self.recipe.batch_size * self.job.sequence_length,
                    "data_seconds": waited,
                },
            )
        return 0


def heldout_loss(training: Training, rows: int) -> float:
    """Mean loss per trained token over the first `rows` held-out rows, in nats."""
    size = training.recipe.batch_size
    total = count = 0.0
    for first in range(0, max(size, min(rows, training.heldout.rows) // size * size), size):
        batch = training.heldout.take(np.arange(first, first + size) % training.heldout.rows)
        trained = float(batch.weights_BT.sum())
        placed = sharding.place_rows(training.mesh, batch)
        total += float(training.measure(training.state.params, training.frozen, placed)) * trained
        count += trained
    return total / count


def locked(folder: Path, seconds: float) -> IO[str]:
    """Hold the folder, so that two trainers never write it at once; a leaving one is waited for."""
    file = (folder / ".trainer.lock").open("w")
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except OSError:
            if time.monotonic() > deadline:
                raise KodaError(f"{folder} is being trained by another process.") from None
            time.sleep(0.2)


def train(job: Job, until: int) -> int:
    """One life of a training process: resume, train to step `until`, save; returns the exit code."""
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, seconds=60):
        Heartbeat(folder).beat("start", 0, until)
        if job.cache:
            jax.config.update("jax_compilation_cache_dir", job.cache)
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        training = Training(job)

        def stop(*_: Any) -> None:
            training.stop_asked = True

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        training.resume()
        with jax.set_mesh(training.mesh):
            return training.run(until)
