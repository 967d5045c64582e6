"""Faults inside the training process, switched on by files in the folder that $KODA_CHAOS names.

Python imports this module in every process whose PYTHONPATH has its folder; only `bench/chaos.py` sets that.

    nan        [first, last): the batches of these numbers give a loss that is not a number
    in-save    the next save is killed between its arrays and its commit file; the file is removed first
    memory     so many bytes are taken before the next step; the file is removed first
    flip       one bit of a weight changes before the next step, and the steps since the last save are computed again
               at the next one; the file is removed first
"""

import builtins
import json
import os
import signal
import sys
from pathlib import Path

FOLDER = Path(os.environ.get("KODA_CHAOS", "/nonexistent"))


def poison() -> None:
    from model.data.batches import Batches

    part = Batches.part

    def poisoned(self, step, rows):
        batch = part(self, step, rows)
        if (FOLDER / "nan").is_file():
            first, last = json.loads((FOLDER / "nan").read_text())
            if first <= step < last:
                return batch._replace(weights_BT=batch.weights_BT * float("nan"))
        return batch

    Batches.part = poisoned


def take_memory() -> None:
    from model.training.training import Training

    batch = Training.batch

    def hungry(self, step):
        if (FOLDER / "memory").is_file():
            size = int((FOLDER / "memory").read_text())
            (FOLDER / "memory").unlink()
            hungry.taken = b"x" * size
        return batch(self, step)

    Training.batch = hungry


def flip_a_bit() -> None:
    import jax
    import numpy as np

    from model.training.replay import Replay
    from model.training.training import Training

    advance, due = Training.advance, Replay.due

    def flipped(self, batch):
        if (FOLDER / "flip").is_file():
            (FOLDER / "flip").rename(FOLDER / "flipped")
            mlp = self.state.params["layers"]["mlp"]["up"]
            raw = np.array(mlp["kernel"])
            raw.view(np.uint32).flat[raw.size // 2] ^= np.uint32(1 << 20)
            mlp["kernel"] = jax.device_put(raw, mlp["kernel"].sharding)
        return advance(self, batch)

    def due_once(self):
        if (FOLDER / "flipped").is_file():
            (FOLDER / "flipped").unlink()
            return True
        return due(self)

    Training.advance, Replay.due = flipped, due_once


def kill_before_commit() -> None:
    from model import arrays

    write_json = arrays.write_json

    def killed(path, value):
        if (FOLDER / "in-save").is_file():
            (FOLDER / "in-save").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        write_json(path, value)

    arrays.write_json = killed


if FOLDER.is_dir() and "model.training" in " ".join(getattr(sys, "orig_argv", [])):
    real = builtins.__import__

    def watching(name, *arguments, **named):
        """Once the trainer's own modules are there, put the faults into them."""
        module = real(name, *arguments, **named)
        if name == "model.training.loop":
            builtins.__import__ = real
            poison()
            take_memory()
            flip_a_bit()
            kill_before_commit()
        return module

    builtins.__import__ = watching
