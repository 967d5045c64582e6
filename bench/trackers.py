"""What a tracker beside a training costs it, also one whose server accepts connections and never replies.

Trainings of one job take turns, without a tracker and with each. Seconds are those of the training's process from its
start to its end, in which a tracker's own start is; the steps' are those of its second half. Then a tracker may take a
while for the rest, which the table has too.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from alternate import ended, peer
from table import Spread, open_run, options, parse, show

from flows.config import load
from model.exit_codes import DONE
from model.training.job import Job
from model.training.records import read_metrics
from tasks import tracking
from tasks.pretrain import pretraining
from tasks.runs.record import read_built

ALONE = "no tracker"
PEERS = {
    ALONE: (),
    "tensorboard": ("tensorboard",),
    "mlflow, a server that never replies": ("mlflow",),
}


def main() -> None:
    parser = options(__doc__, rounds=5, run="its text is trained on")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--steps", type=int, default=400)
    arguments = parse(parser, run="", rounds=1, steps=40)
    if arguments.smoke:
        tracking.LAST = 2.0
    config = load(arguments.preset)
    with open_run(arguments.run) as run, tempfile.TemporaryDirectory() as folder, silent_server():
        tokens = read_built(run, "tokenize")
        assert tokens is not None, f"{run} has no tokens yet"
        job = pretraining(config.pretrain, config.model, tokens, Path(folder) / "run" / "pretrain")
        recipe = replace(job.recipe, steps=arguments.steps, snapshots=0)
        job = replace(job, recipe=recipe, cache=f"{folder}/cache")
        with peer("the first training"):
            train(job, ())
        measured: dict[str, list[Seconds]] = {name: [] for name in PEERS}
        for number in range(arguments.rounds):
            names = [*PEERS]
            for name in names[number % len(names) :] + names[: number % len(names)]:
                with peer(name):
                    measured[name].append(train(job, PEERS[name]))
    rows = []
    for name, values in measured.items():
        columns: list[Spread | str] = []
        for take in (attrgetter("training"), attrgetter("half")):
            ratio = Spread.of([take(a) / take(b) for a, b in zip(values, measured[ALONE], strict=True)])
            columns += [Spread.of([take(each) for each in values]), "" if name == ALONE else ratio]
        rows.append([name, *columns, Spread.of([each.after for each in values])])
    title = f"a training of {arguments.preset}, {arguments.steps} steps, beside a tracker, {arguments.rounds} rounds"
    show(title, ["", "seconds", "ratio", "second half, s", "ratio", "then, s"], rows, arguments.json)


class Seconds(NamedTuple):
    """Of a training's process, of the second half of its steps, and those that its trackers then took."""

    training: float
    half: float
    after: float


def train(job: Job, trackers: tuple[str, ...]) -> Seconds:
    folder = Path(job.folder)
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.mkdir(parents=True)
    job.write(folder / "job.json")
    log = folder / "training.log"
    command = [sys.executable, "-P", "-m", "model.training", str(folder / "job.json"), str(job.recipe.steps)]
    with tracking.tracked(folder, "pretrain", trackers):
        began = time.perf_counter()
        with log.open("w") as output:
            code = subprocess.call(command, stdout=output, stderr=output)
        trained = time.perf_counter()
        if code != DONE:
            raise RuntimeError(ended(code, log))
    after, lines = time.perf_counter() - trained, read_metrics(folder).training
    return Seconds(trained - began, lines[-1].time - lines[len(lines) // 2].time, round(after, 1))


@contextlib.contextmanager
def silent_server() -> Iterator[None]:
    """Have MLflow's server be one that accepts connections, and that is all."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        os.environ["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{server.getsockname()[1]}"
        yield


if __name__ == "__main__":
    main()
