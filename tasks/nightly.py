"""The nightly evaluation: a run's newest weights beside those of the nights before, without disturbing a training."""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from prefect import task

from model.errors import KodaError
from model.evaluation.regression import Compared, compare
from model.figures import Measurement
from model.files import CHECKSUMS, append_line, checksums, is_locked, link, read_lines, sha256
from model.training.records import CHECKPOINTS, JOB, lasting_first
from tasks import retries
from tasks.devices import await_free
from tasks.evaluate import Evaluate
from tasks.progress import log_line
from tasks.reports import artifacts
from tasks.runs.lock import lock
from tasks.runs.paths import existing, root
from tasks.runs.record import RECORD, read_built, versions
from tasks.supervise import call
from tasks.typed import typed

FOLDER, HISTORY, PICTURE = "nightly", "history.jsonl", "history.png"
VERSION = 1  # of what a night measures: nights of another one are not compared


class Newest(NamedTuple):
    """The newest weights of a run."""

    kind: str  # `checkpoint` or `published`; one is not compared with the other, which has learned to answer
    what: str
    path: Path
    digest: str  # identifies these weights


def newest(run: Path) -> Newest | None:
    """What was published, or the last checkpoint: where nothing was yet, and while a pretraining goes on. None: neither
    is there."""
    published = run / "publish/hf"
    step = next(iter(lasting_first(run / "pretrain" / CHECKPOINTS)), 0)
    if (run / "pretrain" / RECORD).is_file() and (published / CHECKSUMS).is_file():
        listed = checksums(published / CHECKSUMS)
        weights = [digest for file, digest in listed.items() if file.endswith(".safetensors")]
        return Newest("published", "the published model", published, _digest(weights))
    path = run / "pretrain" / CHECKPOINTS / str(step)
    return Newest("checkpoint", f"step {step:,}", path, sha256(path / "COMMIT.json")) if step else None


def run_to_measure(name: str) -> Path | None:
    """The folder of the run `name`; where none is named, of any that has weights, or None: one in training comes before
    one that is done, and the newer before the older. Raises KodaError where the named one has nothing."""
    if name:
        if newest(existing(name)) is None:
            raise KodaError(f"run {name!r} has neither a checkpoint nor a published model: nothing can be evaluated.")
        return existing(name)
    folders = sorted((path.parent for path in root().glob("*/run.toml")), key=_recent, reverse=True)
    return next((folder for folder in folders if newest(folder) is not None), None)


def _recent(run: Path) -> tuple[bool, float]:
    training = not (run / "pretrain" / RECORD).is_file() and is_locked(run / ".lock")
    return training, (run / "run.toml").stat().st_mtime


@task(**retries.NIGHT)
def measure(run: Path, settings: Evaluate, memory_gb: float, wait_hours: float) -> list[Compared]:
    """Measure a run's newest weights and add them to its history; weights that were the last night's are not again.

    Returns the comparisons with the last night and with the best. Raises KodaError for a significant regression: what
    was measured is in the history all the same.
    """
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    with lock(folder, f"{folder}"):
        subject, tokens = newest(run), read_built(run, "tokenize")
        if subject is None or tokens is None:
            raise KodaError(f"{run} has no weights yet: there is nothing to evaluate.")
        on = _digest(VERSION, subject.kind, tokens.key, settings.decisive())
        nights = [night for night in read_lines(folder / HISTORY) if night["on"] == on]
        same = {"weights": subject.digest, "versions": versions()}
        if nights and nights[-1] | same == nights[-1]:
            log_line(f"{run.name}: {subject.what} was measured {_when(nights[-1])}, and nothing has come since")
            return []
        environment = await_free(wait_hours)
        with _kept(subject, run, folder) as path:
            measurement = call(
                "model.evaluation.suite:measure",
                folder / "nightly.log",
                Measurement,
                environment=environment,
                background_gb=memory_gb,
                model=path,
                tokens=tokens.folder,
                items=settings.items,
                max_bytes=settings.max_bytes,
                standard_items=settings.standard,
                limit=settings.standard_items,
            )
        tonight = {"time": time.time(), "what": subject.what, "on": on, **same, **asdict(measurement)}
        compared = against(nights, tonight)
        tonight["worse"] = sorted({row.measure for rows in compared.values() for row in worse(rows)})
        append_line(folder / HISTORY, tonight)
    show(run, [*nights, tonight], compared)
    verdict(run.name, subject.what, compared)
    return [row for rows in compared.values() for row in rows]


def against(nights: list[dict[str, Any]], tonight: dict[str, Any]) -> dict[str, list[Compared]]:
    """Tonight's figures beside the last night's, and the best night's, which is that of the fewest bits per byte."""
    if not nights:
        return {}
    best = min(nights, key=lambda night: night["figures"]["bits_per_byte"])
    now = typed(Measurement, tonight)
    compared = {f"the last ({_when(nights[-1])})": compare(typed(Measurement, nights[-1]), now)}
    if best is not nights[-1]:
        compared[f"the best ({_when(best)})"] = compare(typed(Measurement, best), now)
    return compared


def worse(rows: list[Compared]) -> list[Compared]:
    return [row for row in rows if row.worse]


def verdict(name: str, what: str, compared: dict[str, list[Compared]]) -> None:
    """Raises KodaError with the table where anything is significantly worse."""
    flagged = [
        f"  {row.measure:<22} {row.before:>8.4f} → {row.now:.4f}   p = {row.p:.1e}   than {beside}"
        for beside, rows in compared.items()
        for row in worse(rows)
    ]
    if flagged:
        raise KodaError("\n".join([f"{name}, {what}: significantly worse than before:", *flagged]))


def show(run: Path, nights: list[dict[str, Any]], compared: dict[str, list[Compared]]) -> None:
    """A line in the log, and on the run's page the table of tonight and the picture of all nights."""
    from tasks.reports.drawing import save
    from tasks.reports.plots import history

    what, figures = nights[-1]["what"], typed(Measurement, nights[-1]).figures
    log_line(f"{run.name}: {what}: {figures.bits_per_byte:.4f} bits per byte; night {len(nights)}")
    picture = run / FOLDER / PICTURE
    save(
        history([(night["time"], typed(Measurement, night).figures, bool(night["worse"])) for night in nights]), picture
    )
    rows: dict[str, dict[str, Any]] = {"bits per byte": {"tonight": figures.bits_per_byte}}
    for name, scores in [*figures.tasks.items(), *figures.standard.items()]:
        if scores.n:
            rows[f"{name}, accuracy"] = {"tonight": scores.quoted, "± s.e.": scores.stderr, "chance": scores.chance}
    for beside, measures in compared.items():
        for row in measures:
            rows[row.measure] |= {beside: row.before, f"p, {beside}": f"{row.p:.2g}{' WORSE' if row.worse else ''}"}
    name = artifacts.key("nightly", run.name)
    about = f"{run.name}, {what}"
    artifacts.table(name, [{"measure": measure, **row} for measure, row in rows.items()], about)
    artifacts.picture(f"{name}-history", picture, f"{run.name}: every night so far")


@contextmanager
def _kept(subject: Newest, run: Path, folder: Path) -> Iterator[Path]:
    """The weights under names of their own while they are read: a training that goes on removes its old checkpoints."""
    place = folder / ".subject"
    shutil.rmtree(place, ignore_errors=True)
    path = place / subject.path.parent.name / subject.path.name
    try:
        link(subject.path, path)
        if subject.path.parent.name == CHECKPOINTS:  # the training's job has its shape
            shutil.copyfile(run / "pretrain" / JOB, place / JOB)
        yield path
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _when(night: dict[str, Any]) -> str:
    return time.strftime("%d %b %H:%M", time.localtime(night["time"]))
