"""Training under supervision: the same for pretraining, fine-tuning and the longer context."""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from prefect import task
from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from model.config import Compute, LlamaConfig
from model.errors import KodaError
from model.figures import TrainingFigures
from model.ports import free_port
from model.training.heartbeat import Heartbeat
from model.training.job import Job, LoraRecipe, Recipe
from model.training.records import (
    JOB,
    Event,
    EventRecord,
    newest_step,
    read_events,
    read_metrics,
    restarts,
    shown,
)
from model.training.second_place import unsupported
from tasks import retries
from tasks.copies import address, copied, forget_earlier
from tasks.deaths import begin_attempt, log_death
from tasks.devices import gpus, platforms
from tasks.progress import Watch, log_line, progress
from tasks.reports import training_page
from tasks.section import OPERATIONAL, Section, one_of
from tasks.supervise import ProcessFailed, supervise
from tasks.trackers import TRACKERS
from tasks.tracking import tracked

REFUSED_FOR = 60.0  # seconds that other machines may still need to begin, after one that refused to train


class TrainSection(Section):
    """The settings that every training has."""

    batch_size: PositiveInt = 8
    """Rows in a step."""
    learning_rate: PositiveFloat = 4e-3
    """Peak learning rate. With muon that of a model 128 wide: a wider one's weights learn more slowly, so that one
    setting is the best for all widths. With adamw it is what it says."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """Muon for the layers' matrices with AdamW for the rest, or AdamW for everything."""
    schedule: Literal["wsd", "cosine"] = "wsd"
    """Warm-up, plateau and linear decay to zero; or warm-up and a cosine down to a tenth."""
    warmup_steps: NonNegativeInt = 50
    """Steps over which the rate rises to its peak."""
    decay_fraction: Annotated[float, Field(ge=0, le=1)] = 0.4
    """Share of the steps, at the end, over which `wsd` falls to zero."""
    weight_decay: NonNegativeFloat = 0.1
    """Decay of the layers' matrices; norms, embeddings and the head never decay."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1, json_schema_extra=OPERATIONAL)] = 1
    """Parts that a step's rows go through the network in, one after another: the same step in less memory."""
    clip_norm: PositiveFloat = 1.0
    """A gradient whose norm is larger is scaled down to it."""
    seed: NonNegativeInt = 0
    """Decides the first weights and the order of the rows."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in; weights and optimizer are float32 either way. bfloat16 on GPUs."""
    remat: Annotated[Literal["auto", "none", "dots", "full"], Field(json_schema_extra=OPERATIONAL)] = "auto"
    """What the backward pass computes again instead of keeping: nothing, all but matrix products, everything; `auto`:
    as little as the memory of the GPUs allows."""
    scan: Annotated[bool, Field(json_schema_extra=OPERATIONAL)] = False
    """Compile one layer and loop over it: short compile times, and a slower step. `auto` decides this too."""
    fsdp: Annotated[int, Field(ge=0, json_schema_extra=OPERATIONAL)] = 1
    """Devices that the weights are spread over, for a model that does not fit on one; 0: all. The rest of the devices
    each take a share of the rows."""
    tensor: Annotated[int, Field(ge=1, json_schema_extra=OPERATIONAL)] = 1
    """Devices that each matrix product is split over; needs a fast link between them."""
    processes: Annotated[int, Field(ge=0, json_schema_extra=OPERATIONAL)] = 1
    """Processes of this machine that train together, each with its share of the GPUs; where one dies, all go on from
    the last save. One is enough for any number of GPUs; more are what several machines would be. 0: other machines
    train; the run writes their job.json, waits for them and shows their progress."""
    save_every_steps: Annotated[int, Field(ge=1, json_schema_extra=OPERATIONAL)] = 500
    """A permanent save each so many steps."""
    save_every_minutes: Annotated[float, Field(gt=0, json_schema_extra=OPERATIONAL)] = 15
    """A temporary save at least each so many minutes; it replaces the one before it. What a crash can cost at most."""
    save_share: Annotated[float, Field(ge=0, lt=1, json_schema_extra=OPERATIONAL)] = 0.005
    """Share of the time that temporary saves may cost: the next one begins as soon as the measured cost of one allows.
    0: only one each `save_every_minutes`."""
    disk_share: Annotated[float, Field(gt=0, le=1, json_schema_extra=OPERATIONAL)] = 0.5
    """Share of the time in which a temporary save may be being written, with all of the disk's bandwidth."""
    replay_every_minutes: Annotated[float, Field(ge=0, json_schema_extra=OPERATIONAL)] = 0.0
    """Each so many minutes the steps since the last save are computed again, and compared bit by bit: what memory or a
    processor got wrong in them is found and undone. For one process, on CPUs or GPUs with deterministic operations.
    0: never."""
    copy_to: Annotated[str, Field(json_schema_extra=OPERATIONAL)] = ""
    """A second place for checkpoints, below which each training has a folder: one on another disk, s3://BUCKET/PATH or
    gs://BUCKET/PATH. Each is copied there in the background, and a training that has lost its disk goes on from there.
    Credentials come from the environment (AWS_ACCESS_KEY_ID, …)."""
    track: Annotated[tuple[one_of(TRACKERS), ...], Field(json_schema_extra=OPERATIONAL)] = ()  # type: ignore[valid-type]
    """Trackers that metrics and events are mirrored to, beside the training: tensorboard, wandb, trackio, mlflow. Their
    addresses and credentials come from the environment (WANDB_API_KEY, MLFLOW_TRACKING_URI, …)."""
    keep_checkpoints: Annotated[int, Field(ge=1, json_schema_extra=OPERATIONAL)] = 2
    """How many permanent saves are kept; the newest good one always is."""
    verify_every_saves: Annotated[int, Field(ge=1, json_schema_extra=OPERATIONAL)] = 4
    """Each so many-th save is read back before it counts."""
    full_disk_minutes: Annotated[float, Field(ge=0, json_schema_extra=OPERATIONAL)] = 60
    """How long training goes on while its saves find no room on the disk; it tries again every half minute."""
    hang_seconds: Annotated[float, Field(gt=0, json_schema_extra=OPERATIONAL)] = 120
    """Without a heartbeat for so long, and for ten of its slowest steps, a training counts as hung and is restarted."""
    log_every_steps: Annotated[int, Field(ge=1, json_schema_extra=OPERATIONAL)] = 10
    """A line in metrics.jsonl each so many steps."""
    evaluate_every_steps: Annotated[int, Field(ge=1, json_schema_extra=OPERATIONAL)] = 250
    """A measurement of the held-out loss each so many steps."""
    spike_deviations: NonNegativeFloat = 0.0
    """A loss so many standard deviations above the mean of the last 128 counts as bad, and five bad steps in a row go
    back to the last checkpoint and step over that data. 0: only numbers that are not finite are bad."""
    evaluate_rows: PositiveInt = 128
    """Held-out rows in that measurement."""

    @model_validator(mode="after")
    def _one_process(self) -> "TrainSection":
        if self.replay_every_minutes and self.processes != 1:
            raise ValueError("replay_every_minutes needs processes = 1: several do not compare what they compute.")
        return self

    @field_validator("copy_to")
    @classmethod
    def _supported(cls, copy_to: str) -> str:
        if copy_to and (wrong := unsupported(copy_to)):
            shown = copy_to if "@" not in copy_to else f"{copy_to.partition('://')[0]}://…"
            raise ValueError(f"{shown}: {wrong}")
        return copy_to

    def compute(self) -> Compute:
        return Compute(dtype=self.dtype, remat=self.remat, scan=self.scan)

    def recipe(self) -> Recipe:
        known = {"z_loss": 0.0, "dropout": 0.0, "isolate_documents": False, "snapshots": 0, **self.model_dump()}
        return Recipe(**{name: known[name] for name in Recipe.__dataclass_fields__})

    def job(
        self,
        model: LlamaConfig,
        *,
        folder: str,
        train: str,
        heldout: str,
        end_of_text: int,
        init: str | None = None,
        lora: LoraRecipe | None = None,
        row: int = 0,
    ) -> Job:
        """A training of this shape by these settings, in rows of `row` tokens; 0: of the model's whole context."""
        return Job(
            folder=folder,
            train=train,
            heldout=heldout,
            sequence_length=row or model.max_position_embeddings,
            end_of_text=end_of_text,
            model=model,
            compute=self.compute(),
            recipe=self.recipe(),
            init=init,
            lora=lora,
            fsdp=self.fsdp,
            tensor=self.tensor,
        )


def run_training(label: str, job: Job, ends: list[int], settings: TrainSection) -> TrainingFigures:
    """Train to each of `ends` in turn, each a Prefect task run that restarts after a crash; returns the figures."""
    folder = Path(job.folder)
    job_file = folder / JOB
    second_place = address(settings.copy_to, folder)
    forget_earlier(folder, second_place)
    # A restart finds its step compiled.
    replace(job, cache=str(folder.parent / ".compiled"), second_place=second_place).write(job_file)
    began = 0
    with tracked(folder, label, settings.track):
        for number, end in enumerate(ends, 1):
            if end < ends[-1] and end <= newest_step(folder):
                began = end
                continue
            segment.with_options(
                name=label,
                task_run_name=f"{label} {number}/{len(ends)}, steps {began:,}-{end:,}",  # the graph's letters are ASCII
            )(label, str(job_file), str(folder), ends, number, settings.hang_seconds, settings.processes, second_place)
            began = end
    metrics, guessing = read_metrics(folder), math.log(job.model.vocab_size)
    if metrics.heldout and (loss := metrics.heldout[-1].heldout_loss) > guessing:
        log_line(
            f"{label:<10} held-out loss {loss:.2f} is worse than guessing ({guessing:.2f}): the training diverged, or "
            f"has hardly begun; a smaller {label}.learning_rate helps against the former"
        )
    return TrainingFigures(
        steps=job.recipe.steps,
        tokens=job.tokens,
        loss=round(metrics.training[-1].loss, 4) if metrics.training else None,
        heldout_loss=round(metrics.heldout[-1].heldout_loss, 4) if metrics.heldout else None,
        restarts=len(restarts(read_events(folder))),
    )


@task(**retries.SEGMENT)
def segment(
    label: str,
    job_file: str,
    folder: str,
    ends: list[int],
    number: int,
    hang_seconds: float,
    processes: int,
    second_place: str,
) -> None:
    """One supervised attempt at the training, to the end of segment `number`, counted from 1. A crash fails the task,
    and Prefect retries it. With `processes` = 0 other machines train, and the task waits for them."""
    where, end = Path(folder), ends[number - 1]
    if processes:
        begin_attempt(where, label, newest_step(where))
    with (
        progress(label, ends[-1]) as watch,
        training_page.page(where, label, ends),
        copied(where, second_place),
    ):
        echo = EventEcho(where, label)

        def tick() -> None:
            echo.print_new()
            _show(where, watch)

        try:
            if not processes:
                return _await_others(label, job_file, where, end, tick)
            supervise(
                [sys.executable, "-m", "model.training", job_file, str(end)],
                where / "training.log",
                folder=where,
                hang_seconds=hang_seconds,
                peers=peers(processes),
                tick=tick,
            )
        except ProcessFailed as failure:
            beat = Heartbeat.read(where)
            log_death(where, failure, newest_step(where), beat["step"] if beat else 0)
            raise
        finally:
            echo.print_new()


def _await_others(label: str, job_file: str, folder: Path, end: int, tick: Callable[[], None]) -> None:
    """Wait until other machines have committed step `end`. Whatever started them there restarts them.

    Raises KodaError where one refused to train, and none has started.
    """
    before, refused_before, since = Heartbeat.read(folder), len(_refusals(folder)), 0.0
    if newest_step(folder) < end:
        log_line(f"{label:<10} waits for other machines: `python -m model.training {job_file}` on each of them")
    while newest_step(folder) < end:
        time.sleep(1)
        tick()
        if Heartbeat.read(folder) == before and (refusals := _refusals(folder)[refused_before:]):
            since = since or time.monotonic()
            if time.monotonic() - since > REFUSED_FOR:
                raise KodaError(f"another machine refused to train: {refusals[-1].cause}")


def _refusals(folder: Path) -> list[EventRecord]:
    return [record for record in read_events(folder) if record.event is Event.REFUSED]


def peers(count: int) -> list[dict[str, str]]:
    """The environment of each of so many processes, by which JAX joins them; GPUs are shared out in order.

    Raises KodaError where the GPUs cannot be shared out evenly.
    """
    if count == 1:
        return [platforms()]
    devices = list(gpus())
    if len(devices) % count:
        raise KodaError(f"processes = {count}: {len(devices)} GPUs cannot be shared out evenly among them.")
    share = len(devices) // count
    address = f"127.0.0.1:{free_port()}"
    return [
        {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(number)}
        | platforms()
        | ({"CUDA_VISIBLE_DEVICES": ",".join(devices[number * share : (number + 1) * share])} if share else {})
        for number in range(count)
    ]


class EventEcho:
    """Prints the events of a training to the run's log, as they are logged."""

    def __init__(self, folder: Path, label: str):
        self.folder, self.label = folder, label
        self.printed = len(read_events(folder))

    def print_new(self) -> None:
        """Print what was logged since the last time."""
        events = read_events(self.folder)
        # The order decides whether a resume was planned, so that all are looked at.
        fresh = {id(record) for record in events[self.printed :]}
        self.printed = len(events)
        for record in shown(events):
            if id(record) in fresh:
                cause = f": {record.cause}" if record.cause else ""
                log_line(f"{self.label:<10} {record.event} at step {record.step:,}{cause}")


def _show(folder: Path, watch: Watch) -> None:
    beat = Heartbeat.read(folder)
    if beat is None or time.time() - beat["time"] > 60:
        return
    note = f"loss {beat['loss']:.3f}" if beat["loss"] else beat["phase"]
    watch(beat["step"], f"step {beat['step']:,} · {note}")
