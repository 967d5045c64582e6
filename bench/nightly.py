"""What a training loses while a nightly evaluation goes on beside it: its steps per second alone, beside an evaluation
that keeps back, and beside the same one that does not, in turns.

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

from alternate import Spread, show

from flows.config import load
from model.training.protocol import Heartbeat
from tasks.pretrain import pretraining
from tasks.run import folder_of, read_built
from tasks.supervise import call

STEPS = 10**6  # more than it will come to


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", default="tiny", help="the run whose text is trained on, and whose model is evaluated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    run = folder_of(arguments.run)
    config, tokens = load("", run=run), read_built(run, "tokenize")
    assert tokens is not None, f"{run} has no tokens yet"
    with tempfile.TemporaryDirectory() as folder:
        job = pretraining(config.pretrain, config.model, tokens, Path(folder) / "training")
        replace(job, recipe=replace(job.recipe, steps=STEPS)).write(Path(folder) / "job.json")
        with (Path(folder) / "log").open("w") as log:
            command = [sys.executable, "-m", "model.training", f"{folder}/job.json", str(STEPS)]
            training = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            found = turns(Path(folder), run, training, arguments.rounds)
        finally:
            training.kill()
    alone = [pace for pace, _ in found["alone"]]
    rows = []
    for name, of in found.items():
        paces, took = (list(values) for values in zip(*of, strict=True))
        ratio = Spread.of([a / b for a, b in zip(paces, alone, strict=True)])
        rows.append([name, Spread.of(paces), ratio, Spread.of(took)])
    head = ["", "training, steps/s", "ratio", "the evaluation took, s"]
    show(f"a training of preset {arguments.run} beside an evaluation", head, rows, arguments.json)


def turns(folder: Path, run: Path, training: subprocess.Popen, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """The training's steps per second while each kind of work goes on beside it, and the seconds that this took."""

    def evaluation(background_gb: float) -> None:
        asked = {"model": run / "extend/weights", "tokens": run / "tokenize", "items": 50, "max_bytes": 50_000}
        call("model.evaluation.suite:measure", folder / "log", background_gb=background_gb, **asked)

    beside: dict[str, Callable[[], None]] = {
        "alone": lambda: time.sleep(30),
        "beside one that keeps back": lambda: evaluation(8.0),
        "beside one that does not": lambda: evaluation(0.0),
    }
    while (Heartbeat.read(folder / "training") or {"step": 0})["step"] < 20:
        assert training.poll() is None, (folder / "log").read_text()
        time.sleep(0.5)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in beside}
    for _ in range(rounds):
        for name, work in beside.items():
            began, first = time.monotonic(), step(folder)
            work()
            took = time.monotonic() - began
            found[name].append(((step(folder) - first) / took, took))
    return found


def step(folder: Path) -> int:
    beat = Heartbeat.read(folder / "training")
    assert beat is not None
    return beat["step"]


if __name__ == "__main__":
    main()
