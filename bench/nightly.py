"""What a training loses while a nightly evaluation runs beside it: its steps per second alone, beside an evaluation
in the background, and beside the same one in the foreground, in turns.

    .venv/bin/koda run --until evaluate
    .venv/bin/python bench/nightly.py
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from alternate import ended, peer
from table import Spread, open_run, options, parse, show

from flows.config import load
from model.figures import Measurement
from model.training.heartbeat import Heartbeat
from tasks.pretrain import pretraining
from tasks.runs.record import read_built
from tasks.supervise import call

STEPS = 10**6  # more than it will come to


def main() -> None:
    parser = options(__doc__, rounds=3, run="its text is trained on, and its model evaluated")
    parser.add_argument("--seconds", type=float, default=30, help="that the training runs alone, in a round (30)")
    parser.add_argument("--items", type=int, default=50, help="of each task of an evaluation (default: 50)")
    arguments = parse(parser, run="", rounds=1, seconds=2, items=2)
    with open_run(arguments.run) as run, tempfile.TemporaryDirectory() as folder:
        config, tokens = load("", run=run), read_built(run, "tokenize")
        assert tokens is not None, f"{run} has no tokens yet"
        job = pretraining(config.pretrain, config.model, tokens, Path(folder) / "training")
        replace(job, recipe=replace(job.recipe, steps=STEPS)).write(Path(folder) / "job.json")
        with (Path(folder) / "training.log").open("w") as log:
            command = [sys.executable, "-P", "-m", "model.training", f"{folder}/job.json", str(STEPS)]
            training = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            turns = measure(Path(folder), run, training, arguments)
        finally:
            training.kill()
            training.wait()
    alone = [speed for speed, _ in turns["alone"]]
    rows = []
    for name, pairs in turns.items():
        speeds, seconds = (list(values) for values in zip(*pairs, strict=True))
        ratio = Spread.of([a / b for a, b in zip(speeds, alone, strict=True)])
        rows.append([name, Spread.of(speeds), ratio, Spread.of(seconds)])
    head = ["", "training, steps/s", "ratio", "the evaluation took, s"]
    show(f"a training of run {run.name} beside an evaluation", head, rows, arguments.json)


def measure(
    folder: Path, run: Path, training: subprocess.Popen, arguments: argparse.Namespace
) -> dict[str, list[tuple[float, float]]]:
    """The training's steps per second beside each kind of work, and the seconds that the work took, by round."""

    def evaluation(background_gb: float) -> None:
        request = {"model": run / "extend/weights", "tokens": run / "tokenize", "items": arguments.items}
        call(
            "model.evaluation.suite:measure",
            folder / "log",
            Measurement,
            background_gb=background_gb,
            max_bytes=1000 * arguments.items,
            **request,
        )

    beside: dict[str, Callable[[], None]] = {
        "alone": lambda: time.sleep(arguments.seconds),
        "beside one in the background": lambda: evaluation(8.0),
        "beside one in the foreground": lambda: evaluation(0.0),
    }
    with peer("the training"):
        while (Heartbeat.read(folder / "training") or {"step": 0})["step"] < 20:
            check(training, folder)
            time.sleep(0.5)
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in beside}
    for _ in range(arguments.rounds):
        for name, work in beside.items():
            with peer(name):
                began, first = time.monotonic(), step(folder)
                work()
                seconds = time.monotonic() - began
                check(training, folder)
                turns[name].append(((step(folder) - first) / seconds, seconds))
    return turns


def check(training: subprocess.Popen, folder: Path) -> None:
    """Raises RuntimeError where the training has ended."""
    if (code := training.poll()) is not None:
        raise RuntimeError(f"the training ended, {ended(code, folder / 'training.log')}")


def step(folder: Path) -> int:
    beat = Heartbeat.read(folder / "training")
    assert beat is not None
    return beat["step"]


if __name__ == "__main__":
    main()
