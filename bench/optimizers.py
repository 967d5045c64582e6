"""Muon beside AdamW: the held-out loss after the same tokens, each at its best of as many learning rates.

    .venv/bin/koda run --until tokenize
    .venv/bin/python bench/optimizers.py

Bits per byte are taken from the held-out loss of the first 512 held-out rows and the corpus' bytes per token.
"""

import math
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from alternate import ended, peer
from table import open_run, options, parse, show

from flows.config import load
from model.files import read_lines
from model.training.records import METRICS
from tasks.pretrain import pretraining
from tasks.runs.record import Built, read_built

RATES = {"adamw": (1e-3, 2e-3, 4e-3, 8e-3), "muon": (2e-3, 4e-3, 8e-3, 16e-3)}


def main() -> None:
    parser = options(__doc__, run="its text is trained on")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rates", type=int, default=4, help="learning rates of each optimizer (default: 4)")
    arguments = parse(parser, run="", steps=5, rates=1)
    rows = []
    with open_run(arguments.run) as run:
        tokens = read_built(run, "tokenize")
        assert tokens is not None, f"{run} has no tokens yet"
        bytes_per_token = tokens.figures.heldout_bytes / tokens.figures.heldout_tokens
        for name, rates in RATES.items():
            for rate in rates[: arguments.rates]:
                with peer(f"{name}, rate {rate:g}"):
                    losses = [train(tokens, name, rate, arguments.steps, seed) for seed in range(arguments.seeds)]
                loss = sum(losses) / len(losses)
                rows.append([name, f"{rate:g}", round(loss, 4), round(loss / math.log(2) / bytes_per_token, 4)])
                print(*rows[-1], flush=True)
    best = {name: min(row[3] for row in rows if row[0] == name) for name in RATES}
    title = f"preset tiny, {arguments.steps} steps, {arguments.seeds} seed(s)"
    head = ["optimizer", "rate", "nats/token", "bits/byte"]
    show(title, head, rows, arguments.json, ratio=best["muon"] / best["adamw"])


def train(tokens: Built, optimizer: str, rate: float, steps: int, seed: int) -> float:
    """The held-out loss at the end of a training, nats per token."""
    config = load("tiny", {"pretrain": {"optimizer": optimizer, "learning_rate": rate}})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = pretraining(config.pretrain, config.model, tokens, folder)
        recipe = replace(job.recipe, steps=steps, seed=seed, evaluate_rows=512, evaluate_every_steps=steps)
        replace(job, recipe=recipe).write(folder / "job.json")
        command = [sys.executable, "-P", "-m", "model.training", str(folder / "job.json"), str(steps)]
        with (folder / "log").open("w") as log:
            code = subprocess.run(command, stdout=log, stderr=log).returncode
        if code:
            raise RuntimeError(ended(code, folder / "log"))
        return read_lines(folder / METRICS)[-1]["heldout_loss"]


if __name__ == "__main__":
    main()
