"""From `kill -9` of a trainer to its next finished step, with and without the compilation cache.

.venv/bin/koda run --until tokenize
.venv/bin/python bench/restart.py
"""

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from alternate import Spread, show

from flows.config import load, parsed
from model.training.job import Job
from model.training.protocol import Heartbeat
from tasks.pretrain import pretraining
from tasks.run import read_built

SAVE = 10  # steps from one save to the next


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=Path, default=Path("runs/tiny/tokenize"), help="a run's tokenize folder")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    config = load(arguments.preset, parsed(dict(text.split("=") for text in arguments.set)))
    tokens = read_built(arguments.tokens.parent, arguments.tokens.name)
    assert tokens is not None, f"{arguments.tokens} is not done"
    with tempfile.TemporaryDirectory() as folder:
        job = pretraining(config.pretrain, config.model, tokens, Path(folder) / "training")
        job = replace(job, recipe=replace(job.recipe, save_every_steps=SAVE), cache=f"{folder}/cache")
        first_step(job)
        found = {"cold": [], "with the cache": []}
        for _ in range(arguments.rounds):
            shutil.rmtree(f"{folder}/cache")
            found["cold"].append(first_step(job))
            found["with the cache"].append(first_step(job))
    ratio = Spread.of([a / b for a, b in zip(found["with the cache"], found["cold"], strict=True)])
    rows = [[name, Spread.of(seconds), ratio if name != "cold" else ""] for name, seconds in found.items()]
    shape = f"{job.model.num_hidden_layers} layers of {job.model.hidden_size}"
    title = f"restart of {arguments.preset}, {shape}: kill -9 to the next finished step, {arguments.rounds} rounds"
    show(title, ["", "seconds", "ratio"], rows, arguments.json)


def first_step(job: Job) -> float:
    """Start it, wait for a step that was not done before, let it save, kill it; seconds to that step."""
    folder = Path(job.folder)
    folder.mkdir(exist_ok=True)
    job.write(folder / "job.json")
    began = time.perf_counter()
    command = [sys.executable, "-m", "model.training", str(folder / "job.json"), str(job.recipe.steps)]
    trainer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    beat: dict = {}
    while beat.get("pid") != trainer.pid or beat["step"] < (beat["first_step"] or 0) + 2:  # the first is then behind it
        time.sleep(0.005)
        beat = Heartbeat.read(folder) or {}
    seconds = time.perf_counter() - began
    newest = beat["first_step"]
    while not (folder / "checkpoints" / str((newest // SAVE + 1) * SAVE) / "COMMIT.json").exists():
        time.sleep(0.05)
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    return seconds


if __name__ == "__main__":
    main()
