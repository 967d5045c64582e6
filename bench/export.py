"""Peak memory and time of each export, for a model of the reference's size with random weights.

Every export is written by a process of its own, as the convert stage does it, and its peak is what the kernel counted
for that process; `cp` of the same bytes is the peer in time.

    .venv/bin/python bench/export.py --rounds 3
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from alternate import ended, failure, peer
from table import Spread, options, parse, show

from model.export.formats import FORMATS

ABOUT = {"name": "bench", "author": "", "license": "", "url": "", "datasets": []}
EXPORTS = ["hf", "F32", "BF16", "F16", "Q8_0", "Q4_K_M", "fp16", "8bit", "4bit"]


def main() -> None:
    parser = options(__doc__, rounds=3)
    parser.add_argument("--preset", default="koda-1.3b", help="whose shape (default: koda-1.3b)")
    parser.add_argument("--stored", nargs="+", default=["bfloat16", "float32"], help="types of the checkpoint")
    parser.add_argument("--only", nargs="+", default=EXPORTS, help="which exports")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder; 20 GB are needed)")
    smallest = {"only": ["hf", "F16", "Q8_0", "4bit"], "stored": ["bfloat16"]}  # each kind of file once
    arguments = parse(parser, preset="tiny", rounds=1, **smallest)
    if arguments.peer:
        name, function, *parameters = json.loads(arguments.peer)
        with peer(name):
            {"weights": weights, "export": export}[function](*parameters)
        return
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        for stored in arguments.stored:
            source = Path(scratch) / stored
            in_a_process(f"{stored} weights", "weights", str(source), arguments.preset, stored)
            checkpoint = size(source)
            for name in arguments.only:
                rows.append([f"{stored} → {name}", *measured(source, checkpoint, name, arguments.rounds)])
            shutil.rmtree(source)
    head = ["", "checkpoint, GB", "written, GB", "peak, GB", "peak / larger of the two", "seconds", "times cp"]
    show(f"exports of {arguments.preset}, random weights", head, rows, arguments.json)


def measured(source: Path, checkpoint: int, name: str, rounds: int) -> list[object]:
    """One export, written and copied in turn."""
    out = source.parent / "out"
    format_ = FORMATS[format_of(name)]
    for needed in format_.needs:  # the folder that it is made from, which is not counted here
        in_a_process(needed, "export", str(source), str(out), needed)
    seconds, ratios, peaks = [], [], []
    for _ in range(rounds):
        began = time.perf_counter()
        peaks.append(in_a_process(name, "export", str(source), str(out), name))
        seconds.append(time.perf_counter() - began)
        written = out / format_.name
        began = time.perf_counter()
        subprocess.run(["cp", "-r", written, out / "copy"], check=True)
        os.sync()
        ratios.append(seconds[-1] / (time.perf_counter() - began))
        shutil.rmtree(out / "copy")
    bytes_, peak = size(written), max(peaks)
    shutil.rmtree(out)
    gigabytes = [f"{value / 1e9:.2f}" for value in (checkpoint, bytes_, peak)]
    return [*gigabytes, f"{peak / max(checkpoint, bytes_):.2f}", Spread.of(seconds), Spread.of(ratios)]


def in_a_process(name: str, function: str, *parameters: str) -> int:
    """Run `weights` or `export` in a process of its own; its peak resident memory, in bytes."""
    command = [sys.executable, __file__, "--peer", json.dumps([name, function, *parameters])]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise SystemExit(1) if code == 1 else failure(name, ended(code))  # at 1 it has reported its error itself
    return usage.ru_maxrss * 1024


def weights(folder: str, preset: str, dtype: str) -> None:
    """Random numbers of a preset's shape, and a vocabulary of the size that GPT-2's has."""
    from flax import nnx
    from tokenizers import AddedToken, models

    from flows.config import load
    from model import arrays, weights
    from model.data import tokenizer as tokenizers
    from model.data.special import END_OF_TEXT

    rows = 50_257
    shape = load(preset).model.llama(rows)
    template = arrays.flatten(nnx.to_pure_dict(weights.abstract(shape)[1]))
    draw = np.random.default_rng(0)
    numbers = {name: draw.standard_normal(leaf.shape, np.float32).astype(dtype) for name, leaf in template.items()}
    arrays.write(Path(folder), numbers, config=shape.to_dict())
    letters = tokenizers.gpt2_form(models.BPE({f"t{n}": n for n in range(rows - 1)}, []))
    letters.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    letters.save(str(Path(folder).parent / "tokenizer.json"))


def export(source: str, out: str, name: str) -> None:
    """One export, by the code of the convert stage."""
    from model.export import convert

    tokenizer = str(Path(source).parent / "tokenizer.json")
    variant = "auto" if name == "hf" else name
    convert.write(source, tokenizer, out, ABOUT, {format_of(name): (variant,)})


def format_of(name: str) -> str:
    """The format of an export: hf, gguf or mlx."""
    for format_ in FORMATS.values():
        if name == format_.name or name in format_.variants:
            return format_.name
    raise failure(name, "there is no such export")


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
