"""A training: its job, its state, and the files it keeps."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from model import arrays, sharding
from model.data.batches import Batch, Batches
from model.errors import KodaError, out_of_memory
from model.files import append_line, atomic_write, read_json, read_lines, write_json
from model.training import distributed
from model.training import optimizer as optimizers
from model.training.checkpoints import Checkpoints
from model.training.compiled import bytes_of, state_shapes
from model.training.job import Job
from model.training.program import Program
from model.training.records import CHECKPOINTS, METRICS, WINDOWS, Event, HeldoutMetrics, TrainingMetrics, log_event
from model.training.snapshots import Snapshots
from model.training.step import loss, trained_tokens


class Training:
    """A training between two steps. It begins at step 0; `resume` takes it to its newest checkpoint."""

    def __init__(self, job: Job):
        """Raises KodaError for data, weights or devices that the job cannot be done with."""
        self.job, self.recipe, self.folder = job, job.recipe, Path(job.folder)
        self.train, self.heldout = self._batches(job.train), self._batches(job.heldout)
        self.mesh = sharding.make_mesh(job.fsdp, job.tensor)
        sharding.check_rows(self.mesh, self.recipe.batch_size, self.recipe.gradient_accumulation_steps)
        self.program = Program(job)
        self.schedule = optimizers.schedule(job.recipe)
        self.state, self.frozen = self.program.shapes, self._frozen()
        self.windows: list[list[int]] = read_json(self.folder / WINDOWS) if (self.folder / WINDOWS).is_file() else []
        self.checkpoints = Checkpoints(
            self.folder / CHECKPOINTS,
            self.train.fingerprint(),
            self.note,
            keep=self.recipe.keep_checkpoints,
            verify_every=self.recipe.verify_every_saves,
            patience=60 * self.recipe.full_disk_minutes,
            second_place=job.second_place,
        )
        self.snapshots = Snapshots(job, self.note)
        self._measure = jax.jit(self._heldout_part)

    def _batches(self, folder: str) -> Batches:
        return Batches(
            Path(folder),
            batch_size=self.recipe.batch_size,
            sequence_length=self.job.sequence_length,
            seed=self.recipe.seed,
            isolate=self.job.end_of_text if self.recipe.isolate_documents else None,
        )

    def _initial_weights(self) -> dict[str, Any]:
        """The weights that the job begins with, by name; float32, whatever they are stored in."""
        named = arrays.read(Path(self.job.init or ""))
        for name, array in named.items():
            if not np.isfinite(array).all():
                raise KodaError(f"{self.job.init}: {name} has numbers that are not finite.")
        return {name: array.astype(np.float32, copy=False) for name, array in named.items()}

    def _frozen(self) -> Any:
        """The part of the weights that stays as it is."""
        if self.job.lora is None:
            return {}
        template = nnx.to_pure_dict(self.program.abstract.filter(nnx.Not(nnx.LoRAParam)))
        return sharding.place(self.mesh, arrays.unflatten(template, self._initial_weights()))

    def settle(self, memory: int | None) -> None:
        """Take the fastest form whose step fits a device's memory, in bytes, or the last one.

        None: that is the machine's own memory, and the first form stays.
        """
        *forms, last = self.job.compute.forms()
        if memory is None or not forms:
            return
        for compute in forms:
            self.program = Program(replace(self.job, compute=compute))
            if distributed.broadcast_from_writer(self.step_bytes() <= memory):
                return
        self.program = Program(replace(self.job, compute=last))

    def step_bytes(self) -> float:
        """What a step takes on each device, the state included, by the compiler's analysis; infinite where the memory
        did not suffice to compile it, as a GPU's compiler runs products on the card to choose among kernels."""
        try:
            return sum(bytes_of(self.compiled_step()))
        except jax.errors.JaxRuntimeError as error:
            if not out_of_memory(error):
                raise
            return math.inf

    def compiled_step(self) -> jax.stages.Compiled:
        """The step, compiled and not run."""
        with jax.set_mesh(self.mesh):
            return self.program.step.lower(state_shapes(self.program, self.mesh), self.frozen, self.batch(0)).compile()

    def begin(self) -> None:
        """Take the state of step 0."""
        self.state = self.program.initialize(self.mesh)
        if self.job.init is not None and self.job.lora is None:
            params = arrays.unflatten(self.program.shapes.params, self._initial_weights())
            self.state = self.state._replace(params=sharding.place(self.mesh, params))

    def resume(self) -> int:
        """Take the newest intact checkpoint, or step 0, and drop the metrics of steps that will be repeated."""
        newest = self.checkpoints.restore(self.program.shapes)
        if newest is None:
            self.begin()
        else:
            self.state = sharding.place(self.mesh, newest[1])
            self._take_windows(newest[0])
        step = self.step
        if distributed.is_writer():
            kept = [line for line in read_lines(self.folder / METRICS) if line["step"] <= step]
            with atomic_write(self.folder / METRICS) as file:
                file.writelines(json.dumps(line) + "\n" for line in kept)
        devices = self.mesh.devices.flatten()
        self.note(Event.RESUME if step else Event.START, step, devices=len(devices), device=devices[0].device_kind)
        return step

    def go_back(self, step: int) -> None:
        """Take the state of the checkpoint of this step, and read the weights that stay as they are again. Raises
        arrays.Corrupt, and leaves all as it is."""
        named = arrays.read(self.checkpoints.folder / str(step))
        if self.job.lora is not None:
            self.frozen = self._frozen()
        self.state = self.program.shapes  # its memory is free for the other
        self.state = sharding.place(self.mesh, arrays.unflatten(self.program.shapes, named))

    def advance(self, batch: Batch) -> dict[str, jax.Array]:
        """Make a step, and return its metrics; the device may still be at it."""
        self.state, metrics = self.program.step(self.state, self.frozen, batch)
        return metrics

    def _take_windows(self, step: int) -> None:
        """Where the file of them was lost with the disk, they are those that the checkpoint was trained with."""
        recorded = arrays.facts(self.checkpoints.folder / str(step)).get("windows", [])
        if recorded and not (self.folder / WINDOWS).is_file():
            self.windows = recorded
            distributed.broadcast_from_writer(0)  # each has looked before one writes
            if distributed.is_writer():
                write_json(self.folder / WINDOWS, recorded)

    @property
    def step(self) -> int:
        return int(self.state.step)

    def learning_rate(self, step: int) -> float:
        """The rate of a step, computed on the host: a device would get to it after the step that it is at."""
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            return float(self.schedule(step))

    def cursor(self, step: int) -> int:
        """The batch that a step reads: its own number, and as many more as were stepped over before it."""
        return step + sum(count for start, count in self.windows if start <= step)

    def batch(self, step: int) -> Batch:
        """What a step learns from, spread over the devices; this process reads its own rows."""
        index = self.cursor(step)
        return sharding.place_rows(self.mesh, self.recipe.batch_size, lambda rows: self.train.part(index, rows))

    def step_over(self, step: int, cause: str) -> None:
        """Have the next attempt go on from the last checkpoint, after the data read since."""
        self.checkpoints.wait()
        start = max(self.checkpoints.steps(), default=0)
        self.snapshots.drop_after(start)
        if distributed.is_writer():
            write_json(self.folder / WINDOWS, [*self.windows, [start, step - start]])
        batches = [self.cursor(start), self.cursor(start) + step - start]
        self.note(Event.ROLLBACK, start, cause=cause, batches=batches)

    def take_snapshot(self, step: int) -> None:
        """Begin to keep the weights, which are those of `step`."""
        self.snapshots.take(step, self.state.params, arrays.size(self.state))

    def wait_for_writes(self) -> None:
        """Wait until what is being written is committed: an attempt that goes on from a checkpoint does not pass the
        steps of earlier snapshots again."""
        self.snapshots.wait()
        self.checkpoints.wait()

    def save(self, step: int, *, permanent: bool, **facts: Any) -> None:
        """Begin a checkpoint of the state, which is at `step`."""
        self.checkpoints.save(step, self.state, permanent=permanent, windows=self.windows, **facts)

    def heldout_loss(self, beat: Callable[[], None] = lambda: None) -> float:
        """Mean loss per trained token over the first `evaluate_rows` held-out rows, in nats."""
        size, rows = self.recipe.batch_size, self.heldout.rows
        total = count = 0.0
        for first in range(0, max(size, min(self.recipe.evaluate_rows, rows) // size * size), size):

            def read(span: slice, first: int = first) -> Batch:
                return self.heldout.take(np.arange(first + span.start, first + span.stop) % rows)

            batch = sharding.place_rows(self.mesh, size, read)
            part, tokens = self._measure(self.state.params, self.frozen, batch)
            total, count = total + float(part) * float(tokens), count + float(tokens)
            beat()
        return total / count

    def _heldout_part(self, params: Any, frozen: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        count = trained_tokens(batch)
        return loss(self.program.rebuild(params, frozen), batch, count)[1], count

    def note(self, event: Event, step: int, **more: Any) -> None:
        """Add to the event log."""
        if distributed.is_writer():
            log_event(self.folder, event, step, **more)

    def log_metrics(self, metrics: TrainingMetrics | HeldoutMetrics) -> None:
        """Add a line to the metrics."""
        if distributed.is_writer():
            append_line(self.folder / METRICS, asdict(metrics))
