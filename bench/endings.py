"""What the end-of-text token in the loss is worth: answers that end by themselves, with it and without.

Of a finished run (`koda run`) a copy is fine-tuned anew without that token in the loss; everything else is the same.
The run's exports then answer the same held-out questions, each in its own runtime.

    .venv/bin/python bench/endings.py --run tiny
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from alternate import show

from model.export.parity import opened
from model.export.runtimes import answer
from model.files import read_json
from model.sampling import Sampling
from tasks.run import folder_of

KODA = str(Path(sys.executable).with_name("koda"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="tiny", help="a finished run (default: tiny)")
    parser.add_argument("--preset", default="tiny", help="its preset (default: tiny)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="what it changed")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    folder = folder_of(arguments.run).absolute()
    shipped, extended = (read_json(folder / stage / "stage.json")["figures"] for stage in ("sft", "extend"))
    without = untrained_end(folder, arguments)
    asked = shipped["asked"]
    rows = [
        ["before fine-tuning", shipped["ends_by_itself_before"]],
        ["fine-tuned, the end not in the loss", without["ends_by_itself"]],
        ["fine-tuned as shipped", shipped["ends_by_itself"]],
        ["with the longer context", extended["ends_by_itself"]],
        *([f"{file.name}, {kind}", in_runtime(kind, file, folder, asked)] for kind, file in exports(folder)),
    ]
    shown = [[name, f"{100 * share:.1f} %"] for name, share in rows]
    show(f"answers that end by themselves, of {asked} held-out questions", ["", "share"], shown, arguments.json)


def untrained_end(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """The figures of the sft stage without the end-of-text token in the loss."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        copy = Path(place) / "endless"
        shutil.copytree(folder, copy, ignore=lambda at, names: () if Path(at) != folder else unwanted(names))
        changes = [part for change in (*arguments.set, "sft.train_end=false") for part in ("--set", change)]
        command = [KODA, "run", "--preset", arguments.preset, "--name", "endless", "--until", "sft", *changes]
        subprocess.run(command, check=True, env={**os.environ, "KODA_RUNS": place}, stdout=sys.stderr)
        return read_json(copy / "sft/stage.json")["figures"]


def unwanted(names: list[str]) -> list[str]:
    return [name for name in names if name not in ("tokenize", "pretrain", "checkpoint", "run.toml")]


def exports(folder: Path) -> list[tuple[str, Path]]:
    found = [("hf", folder / "convert/hf")]
    found += [("gguf", file) for file in sorted((folder / "convert/gguf").glob("*.gguf"))]
    return found + [("mlx", file) for file in sorted((folder / "convert/mlx").iterdir()) if file.is_dir()]


def in_runtime(kind: str, file: Path, folder: Path, asked: int) -> float:
    context = read_json(folder / "extend/weights/COMMIT.json")["config"]["max_position_embeddings"]
    runtime = opened(kind, file, context)
    prompts = read_json(folder / "sft/data/prompts.json")[:asked]
    return sum(answer(runtime, line["messages"], Sampling(limit=100)).stopped for line in prompts) / len(prompts)


if __name__ == "__main__":
    main()
