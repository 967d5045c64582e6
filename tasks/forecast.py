"""What a run's pretraining is expected to reach, by a ladder; written down before its first step."""

import time
from dataclasses import asdict, fields
from pathlib import Path

from model.errors import KodaError
from model.files import read_json, write_json
from model.ladder.figures import Forecasted, Ladder, Training
from model.ladder.law import LEAST, Law, fit, forecast
from model.ladder.rungs import size
from model.training.job import Job
from model.training.records import newest_step
from tasks.progress import log_line
from tasks.runs.paths import existing
from tasks.typed import typed

LADDER, RESULT = "ladder", "ladder.json"  # in a run's folder, and in that
FORECAST = "forecast.json"  # in a training's folder


def expect(training: Path, job: Job, name: str, text: str) -> None:
    """Write into a training's folder what a ladder expects of it, before that begins.

    `name`: the run whose ladder it is; empty: the training's own run, where it has one. `text`: the key of its tokens.
    Raises KodaError where the named ladder is of another text; the run's own is left out then.
    """
    if newest_step(training):
        return
    run = existing(name) if name else training.parent
    ladder = finished_ladder(run) if name else read_ladder(run)
    if ladder is None:
        return
    if not name and ladder.text != text:
        log_line(f"forecast   none: the run's ladder is of another text or tokenizer; `koda ladder {run.name}` again")
        return
    expected = forecasted(ladder, run.name, job, text)
    write_json(training / FORECAST, asdict(expected))
    log_line(f"forecast   {in_words(expected)}")


def forecasted(ladder: Ladder, run: str, job: Job, text: str) -> Forecasted:
    """What the ladder of `run` expects of a training on `text`, by the key of its tokens.

    Raises KodaError for a ladder of another text.
    """
    if ladder.text != text:
        raise KodaError(
            f"the ladder of run {run!r} is of another text or tokenizer ({ladder.text[:12]}) than this run's "
            f"({text[:12]}): its law says nothing about it. `koda ladder {run}` makes one of that run's text."
        )
    n, tokens = size(job.model), job.tokens
    points = [each.point for each in ladder.trainings]
    return Forecasted(
        ladder=run,
        text=ladder.text,
        n=n,
        tokens=tokens,
        made=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        forecast=forecast(points, ladder.law, n, tokens),
        beyond=n * tokens / max(point.compute for point in points),
    )


def finished_ladder(run: Path) -> Ladder:
    """The ladder of a run. Raises KodaError where it has none that is finished."""
    ladder = read_ladder(run)
    if ladder is None:
        raise KodaError(f"run {run.name!r} has no finished ladder: `koda ladder {run.name}` makes it.")
    return ladder


def read_ladder(run: Path) -> Ladder | None:
    """The finished ladder of a run; None where it has none. A law of an earlier form is fitted again,
    where there are trainings enough for it."""
    path = run / LADDER / RESULT
    if not path.is_file():
        return None
    written = read_json(path)
    if written["law"].keys() != {field.name for field in fields(Law)}:
        trainings = typed(list[Training], written["trainings"])
        if len(trainings) < LEAST:
            return None
        written["law"] = asdict(fit([each.point for each in trainings]))
    return typed(Ladder, written)


def read_forecast(training: Path) -> Forecasted | None:
    """What was expected of a training before its first step; None where nothing was."""
    path = training / FORECAST
    return typed(Forecasted, read_json(path)) if path.is_file() else None


def in_words(expected: Forecasted) -> str:
    """A forecast as a person reads it."""
    f = expected.forecast
    return (
        f"{f.loss:.3f} bits per byte held out ({f.low:.3f} to {f.high:.3f}), by the ladder of {expected.ladder}; "
        f"{expected.beyond:.1f} times the compute of its largest training"
    )
