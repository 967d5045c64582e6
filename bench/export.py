"""Peak memory and time of each export, for a model of the reference's size with random weights.

Every export is written by a process of its own, as the convert stage does it, and its peak is what the kernel counted
for that process; `cp` of the same bytes is the peer in time. K-quants are measured where `kquants` is installed.

    .venv/bin/python bench/export.py --rounds 3
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from alternate import Spread, options, show

ABOUT = {"name": "bench", "author": "", "license": "", "url": "", "datasets": []}
EXPORTS = ["hf", "F32", "BF16", "F16", "Q8_0", "fp16", "8bit", "4bit"]


def main() -> None:
    parser = options(__doc__.splitlines()[0], rounds=3)
    parser.add_argument("--preset", default="koda-1.3b", help="whose shape (default: koda-1.3b)")
    parser.add_argument("--stored", nargs="+", default=["bfloat16", "float32"], help="types of the checkpoint")
    parser.add_argument("--only", nargs="+", default=[*EXPORTS, "Q4_K_M"], help="which exports")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder; 20 GB are needed)")
    arguments = parser.parse_args()
    if arguments.peer:
        write(*json.loads(arguments.peer))
        return
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        for stored in arguments.stored:
            source = Path(scratch) / stored
            in_a_process("weights", str(source), arguments.preset, stored)
            checkpoint = size(source)
            for name in arguments.only:
                if name == "Q4_K_M" and importlib.util.find_spec("llama_cpp") is None:
                    print("Q4_K_M is left out: the extra `kquants` is not installed", file=sys.stderr)
                    continue
                rows.append([f"{stored} → {name}", *measured(source, checkpoint, name, arguments.rounds)])
            shutil.rmtree(source)
    head = ["", "checkpoint, GB", "written, GB", "peak, GB", "peak / larger of the two", "seconds", "times cp"]
    show(f"exports of {arguments.preset}, random weights", head, rows, arguments.json)


def measured(source: Path, checkpoint: int, name: str, rounds: int) -> list[object]:
    """One export, written and copied in turn."""
    out = source.parent / "out"
    if name in ("fp16", "8bit", "4bit"):  # made from the HF folder, which is not counted here
        in_a_process("export", str(source), str(out), "hf")
    seconds, ratios, peaks = [], [], []
    for _ in range(rounds):
        began = time.perf_counter()
        peaks.append(in_a_process("export", str(source), str(out), name))
        seconds.append(time.perf_counter() - began)
        written = out / {"hf": "hf", "fp16": "mlx", "8bit": "mlx", "4bit": "mlx"}.get(name, "gguf")
        began = time.perf_counter()
        subprocess.run(["cp", "-r", written, out / "copy"], check=True)
        os.sync()
        ratios.append(seconds[-1] / (time.perf_counter() - began))
        shutil.rmtree(out / "copy")
    bytes_, peak = size(written), max(peaks)
    shutil.rmtree(out)
    gigabytes = [f"{value / 1e9:.2f}" for value in (checkpoint, bytes_, peak)]
    return [*gigabytes, f"{peak / max(checkpoint, bytes_):.2f}", Spread.of(seconds), Spread.of(ratios)]


def in_a_process(*order: str) -> int:
    """Run `write` in a process of its own; its peak resident memory, in bytes."""
    child = subprocess.Popen([sys.executable, __file__, "--peer", json.dumps(order)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(order)} failed")
    return usage.ru_maxrss * 1024


def write(what: str, *order: str) -> None:
    """In a peer's process: make the weights, or one export of them."""
    (weights if what == "weights" else export)(*order)


def weights(folder: str, preset: str, dtype: str) -> None:
    """Random numbers of a preset's shape, and a vocabulary as large as it wants."""
    from flax import nnx
    from tokenizers import AddedToken, models

    from flows.config import load
    from model import arrays, weights
    from model.data import tokenizer as tokenizers
    from model.data.tokenizer import END_OF_TEXT

    rows = 50_257
    shape = load(preset).model.llama(rows)
    template = arrays.flatten(nnx.to_pure_dict(weights.abstract(shape)[1]))
    draw = np.random.default_rng(0)
    made = {name: draw.standard_normal(leaf.shape, np.float32).astype(dtype) for name, leaf in template.items()}
    arrays.write(Path(folder), made, config=shape.to_dict())
    letters = tokenizers.gpt2_form(models.BPE({f"t{n}": n for n in range(rows - 1)}, []))
    letters.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    letters.save(str(Path(folder).parent / "tokenizer.json"))


def export(source: str, out: str, name: str) -> None:
    """One export, by the code of the convert stage."""
    from model.export import convert, mlx

    tokenizer = str(Path(source).parent / "tokenizer.json")
    if name in mlx.BITS:
        mlx.write(Path(out) / "mlx", Path(out) / "hf", name)
    elif name == "hf":
        convert.write(source, tokenizer, out, ABOUT, "auto", ["hf"], [], [])
    else:
        convert.write(source, tokenizer, out, ABOUT, "auto", ["gguf"], [name], [])


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
