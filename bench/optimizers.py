"""Muon beside AdamW: the held-out loss after the same tokens, each at its best of as many learning rates.

    .venv/bin/koda run --until tokenize
    .venv/bin/python bench/optimizers.py

Bits per byte are taken from the held-out loss of the first 512 held-out rows and the corpus' bytes per token.
"""

import argparse
import math
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from alternate import show

from flows.config import load
from model.files import read_json
from model.training.protocol import METRICS, lines

RATES = {"adamw": (1e-3, 2e-3, 4e-3, 8e-3), "muon": (2e-3, 4e-3, 8e-3, 16e-3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=Path, default=Path("runs/tiny/tokenize"), help="a run's tokenize folder")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    figures = read_json(arguments.tokens / "stage.json")["figures"]
    bytes_per_token = figures["heldout_bytes"] / figures["heldout_tokens"]
    rows = []
    for name, rates in RATES.items():
        for rate in rates:
            losses = [train(arguments.tokens, figures, name, rate, arguments.steps, s) for s in range(arguments.seeds)]
            loss = sum(losses) / len(losses)
            rows.append([name, f"{rate:g}", round(loss, 4), round(loss / math.log(2) / bytes_per_token, 4)])
            print(*rows[-1], flush=True)
    best = {name: min(row[3] for row in rows if row[0] == name) for name in RATES}
    title = f"preset tiny, {arguments.steps} steps, {arguments.seeds} seed(s)"
    show(
        title,
        ["optimizer", "rate", "nats/token", "bits/byte"],
        rows,
        arguments.json,
        ratio=best["muon"] / best["adamw"],
    )


def train(tokens: Path, figures: dict, optimizer: str, rate: float, steps: int, seed: int) -> float:
    """The held-out loss at the end of a training, nats per token."""
    config = load("tiny", {"pretrain": {"optimizer": optimizer, "learning_rate": rate}})
    recipe = replace(config.pretrain.recipe(), steps=steps, seed=seed, evaluate_rows=512, evaluate_every_steps=steps)
    with tempfile.TemporaryDirectory() as folder:
        job = config.pretrain.job(
            config.model.llama(figures["vocab_size"]),
            folder=folder,
            train=str(tokens / "train"),
            heldout=str(tokens / "heldout"),
            end_of_text=figures["end_of_text"],
        )
        job = replace(job, recipe=recipe)
        job.write(Path(folder) / "job.json")
        command = [sys.executable, "-m", "model.training", f"{folder}/job.json", str(steps)]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        return lines(Path(folder) / METRICS)[-1]["heldout_loss"]


if __name__ == "__main__":
    main()
