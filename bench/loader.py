"""Batches per second from disk, beside the fastest step that could use them.

The shards are real files of random token ids, larger than any batch; reading is memory-mapped, so that the memory of a
process does not grow with them. The peer is the step: PaLM's operations per token at the highest published utilisation.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
from alternate import peer
from table import Spread, options, parse, show

from model.accelerators import ACCELERATORS, flops_per_token
from model.data.batches import Batches
from model.data.shards import ShardWriter

SHARD = 50_000_000


def main() -> None:
    parser = options(__doc__, rounds=8)
    parser.add_argument("--tokens", type=int, default=200_000_000, help="in the corpus (default: 200 M)")
    arguments = parse(parser, tokens=2_000_000, rounds=1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        corpus(Path(folder), arguments.tokens)
        for name, batch, length, steps in CASES:
            with peer(name):
                batches = Batches(Path(folder), batch_size=batch, sequence_length=length, seed=0)
                batches[0]
                before = resident()
                speed = Spread.of([rate(batches, first) for first in range(0, 40 * arguments.rounds, 40)])
                more = (resident() - before) / 1e6
            ratio = f"{speed.median / steps:,.0f}"
            rows.append([name, f"{batch} × {length}", speed, f"{steps:.3g}", ratio, f"{more:.0f}"])
    head = ["what uses them", "batch", "batches/s", "its steps/s", "ratio", "MB of memory more after reading"]
    title = f"loader, {arguments.tokens / 1e6:,.0f} M tokens on disk, one process, median (min–max)"
    show(title, head, rows, arguments.json)


def corpus(folder: Path, tokens: int) -> None:
    writer = ShardWriter(folder, 50257, SHARD)
    random = np.random.default_rng(0)
    for start in range(0, tokens, SHARD):
        writer.add(random.integers(0, 50257, min(SHARD, tokens - start), np.uint16))
    writer.close()


def rate(batches: Batches, first: int) -> float:
    began = time.perf_counter()
    for step in range(first, first + 40):
        batches[step]
    return 40 / (time.perf_counter() - began)


def resident() -> int:
    """Bytes of this process's own memory; pages of mapped files are the kernel's to take back."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


def steps_per_second(preset: str, gpu: str, utilisation: float) -> float:
    from flows.config import load

    config = load(preset)
    shape = config.model.llama(50257)
    tokens = config.pretrain.batch_size * shape.max_position_embeddings
    return utilisation * ACCELERATORS[gpu].bfloat16 / (flops_per_token(shape, shape.max_position_embeddings) * tokens)


CASES = [
    ("koda-1.3b on an H200 at 50 % of peak", 32, 1024, steps_per_second("koda-1.3b", "H200", 0.5)),
    ("koda-124m on an H200 at 50 % of peak", 32, 1024, steps_per_second("koda-124m", "H200", 0.5)),
    ("tiny on 2 CPU cores, as measured", 8, 128, 14.0),
]

if __name__ == "__main__":
    main()
