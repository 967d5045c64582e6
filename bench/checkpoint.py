"""What a save costs the step loop: seconds it is stalled, bytes on disk, memory at the peak; and what that is of a run.

A real state of the shape's size (weights and optimizer) is saved. How often a run would save by itself, and what share
of its time the stalls are then, follows from that by the trainer's own rule; steps that are slower during a write are
not in it: no step is made here.
"""

import tempfile
import threading
import time
from pathlib import Path

import jax
from alternate import peer
from table import Spread, options, parse, show

from flows.cli.plan import pretraining_job
from flows.config import load
from model import arrays
from model.training.cadence import Cadence, SaveCost
from model.training.checkpoints import Checkpoints
from model.training.program import Program


def main() -> None:
    parser = options(__doc__, rounds=5)
    parser.add_argument("--presets", default="tiny,koda-124m")
    arguments = parse(parser, presets="tiny", rounds=2)
    rows = []
    for preset in arguments.presets.split(","):
        with peer(preset):
            rows.append([preset, *row(preset, arguments.rounds)])
    head = [
        "state",
        "size",
        "stall, s",
        "whole save, s",
        "one each s",
        "stalls",
        "on disk",
        "peak memory, × state",
    ]
    show(f"checkpoint, {arguments.rounds} saves each, median (min–max)", head, rows, arguments.json)


def row(preset: str, rounds: int) -> list[object]:
    config = load(preset)
    job = pretraining_job(config)
    state = Program(job).first_state()
    jax.block_until_ready(state)
    stalls, seconds, peaks, disk = measure(state, rounds)
    stall, write = Spread.of(stalls), Spread.of(seconds)
    cadence = Cadence(config.pretrain.save_share, config.pretrain.disk_share, 60 * config.pretrain.save_every_minutes)
    cadence.cost = SaveCost(stall.median, 0.0, write.median)
    interval = cadence.interval()
    size = arrays.size(state)
    memory = Spread.of([peak / size for peak in peaks])
    share = f"{100 * stall.median / interval:.2g} %"
    return [f"{size / 1e6:,.0f} MB", stall, write, f"{interval:.1f}", share, f"{disk / 1e6:,.0f} MB", memory]


def measure(state, rounds: int):
    stalls, seconds, peaks, disk = [], [], [], 0
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            checkpoints = Checkpoints(Path(folder), "bench", lambda *_, **__: None, keep=1, verify_every=1000)
            with Peak() as peak:
                began = time.perf_counter()
                checkpoints.save(1, state, permanent=True)
                stalls.append(time.perf_counter() - began)
                checkpoints.wait()
                seconds.append(time.perf_counter() - began)
            if number:  # the first save also pays for what Orbax sets up once
                peaks.append(peak.bytes)
            disk = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return stalls, seconds, peaks, disk


class Peak:
    """The most memory of its own that this process had during a block, beyond what it had before."""

    def __enter__(self):
        self.bytes, self.over, self.before = 0, False, resident()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.over:
            self.bytes = max(self.bytes, resident() - self.before)
            time.sleep(0.002)

    def __exit__(self, *_):
        self.over = True
        self.thread.join()


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


if __name__ == "__main__":
    main()
