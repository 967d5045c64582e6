"""What the end-of-text token in the loss is worth: answers that end by themselves, with it and without.

A copy of a finished run (`koda run`) is fine-tuned without that token in the loss; everything else is the same. The
run's exports then answer the same held-out questions, each in its own runtime.

    .venv/bin/python bench/endings.py --run tiny
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from alternate import peer
from table import open_run, options, parse, show

from model.export.formats import FORMATS
from model.export.runtime import Runtime, answer
from model.figures import ExtendFigures, SftFigures
from model.files import read_json
from model.sampling import Sampling
from tasks.runs.record import read_figures

WITHOUT = "fine-tuned, the end not in the loss"
COPIED = ("tokenize", "pretrain", "checkpoint", "run.toml")


def main() -> None:
    parser = options(__doc__, run="finished, its exports answer the questions")
    parser.add_argument("--questions", type=int, help="to each export, at most (default: as many as the run had)")
    arguments = parse(parser, run="", questions=2)
    with open_run(arguments.run) as folder:
        title, rows = table(folder, arguments)
    shown = [[name, f"{100 * share:.1f} %"] for name, share in rows]
    show(title, ["", "share"], shown, arguments.json)


def table(folder: Path, arguments: argparse.Namespace) -> tuple[str, list[tuple[str, float]]]:
    shipped, extended = read_figures(folder, SftFigures), read_figures(folder, ExtendFigures)
    if shipped is None or extended is None or extended.measured is None:
        raise SystemExit(f"bench: {folder} is not finished. `koda run --name {folder.name}` continues it.")
    with peer(WITHOUT):
        without = untrained_end(folder)
    rows = [
        ("before fine-tuning", shipped.ends_by_itself_before),
        (WITHOUT, without),
        ("fine-tuned as shipped", shipped.ends_by_itself),
        ("with the longer context", extended.measured.ends_by_itself),
    ]
    prompts = read_json(folder / "sft/data/prompts.json")[: shipped.asked][: arguments.questions]
    for format_ in FORMATS.values():
        for path in format_.exports(folder / "convert" / format_.name):
            name = f"{path.name}, {format_.runtime}"
            with peer(name):
                rows.append((name, ended(format_.open(path, extended.context), prompts)))
    return f"answers that end by themselves, of {shipped.asked} held-out questions", rows


def untrained_end(folder: Path) -> float:
    """The share of answers that end by themselves, without the end-of-text token in the loss."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        copy = Path(scratch) / "endless"
        copy.mkdir()
        for name in COPIED:
            source = folder / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / name)
        command = [sys.executable, "-P", "-m", "flows.cli.main", "run", "--name", "endless", "--until", "sft"]
        command += ["--set", "sft.train_end=false"]
        subprocess.run(command, check=True, env={**os.environ, "KODA_RUNS": scratch}, stdout=sys.stderr)
        figures = read_figures(copy, SftFigures)
        assert figures is not None
        return figures.ends_by_itself


def ended(runtime: Runtime, prompts: list[dict]) -> float:
    """The share of answers that end by themselves."""
    return sum(answer(runtime, line["messages"], Sampling(limit=100)).stopped for line in prompts) / len(prompts)


if __name__ == "__main__":
    main()
