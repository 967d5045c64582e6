"""From `kill -9` of a trainer to its next finished step, with and without the compilation cache.

.venv/bin/koda run --until tokenize
.venv/bin/python bench/restart.py
"""

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from alternate import ended, peer
from table import Spread, open_run, options, parse, show

from flows.config import load, parsed
from model.training.heartbeat import Heartbeat
from model.training.job import Job
from tasks.pretrain import pretraining
from tasks.runs.record import read_built

SAVE = 10  # steps from one save to the next


def main() -> None:
    parser = options(__doc__, rounds=5, run="its text is trained on")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting")
    arguments = parse(parser, run="", rounds=1)
    config = load(arguments.preset, parsed(dict(text.split("=") for text in arguments.set)))
    with open_run(arguments.run) as run, tempfile.TemporaryDirectory() as folder:
        tokens = read_built(run, "tokenize")
        assert tokens is not None, f"{run} has no tokens yet"
        job = pretraining(config.pretrain, config.model, tokens, Path(folder) / "training")
        job = replace(job, recipe=replace(job.recipe, save_every_steps=SAVE), cache=f"{folder}/cache")
        with peer("the first start"):
            restart(job)
        seconds: dict[str, list[float]] = {"cold": [], "with the cache": []}
        for _ in range(arguments.rounds):
            shutil.rmtree(f"{folder}/cache")
            for name, values in seconds.items():
                with peer(name):
                    values.append(restart(job))
    ratio = Spread.of([a / b for a, b in zip(seconds["with the cache"], seconds["cold"], strict=True)])
    rows = [[name, Spread.of(values), ratio if name != "cold" else ""] for name, values in seconds.items()]
    shape = f"{job.model.num_hidden_layers} layers of {job.model.hidden_size}"
    title = f"restart of {arguments.preset}, {shape}: kill -9 to the next finished step, {arguments.rounds} rounds"
    show(title, ["", "seconds", "ratio"], rows, arguments.json)


def restart(job: Job) -> float:
    """Start the trainer, wait for a new step, let it save, kill it; seconds to that step."""
    folder = Path(job.folder)
    folder.mkdir(exist_ok=True)
    job.write(folder / "job.json")
    log = folder / "training.log"
    command = [sys.executable, "-P", "-m", "model.training", str(folder / "job.json"), str(job.recipe.steps)]
    began = time.perf_counter()
    with log.open("w") as output:
        trainer = subprocess.Popen(command, stdout=output, stderr=output)

    def wait(condition: Callable[[], bool], pause: float) -> None:
        while not condition():
            if (code := trainer.poll()) is not None:
                raise RuntimeError(ended(code, log))
            time.sleep(pause)

    def stepped() -> bool:
        beat = Heartbeat.read(folder) or {}  # the first step is finished when the second begins
        return beat.get("pid") == trainer.pid and beat["step"] >= (beat["first_step"] or 0) + 2

    try:
        wait(stepped, 0.005)
        seconds = time.perf_counter() - began
        beat = Heartbeat.read(folder)
        assert beat is not None
        save = (beat["first_step"] // SAVE + 1) * SAVE
        wait((folder / "checkpoints" / str(save) / "COMMIT.json").exists, 0.05)
    finally:
        trainer.send_signal(signal.SIGKILL)
        trainer.wait()
    return seconds


if __name__ == "__main__":
    main()
