"""Faults inside the training process, switched on by files in the folder that $KODA_CHAOS names.

Python imports this module in every process whose PYTHONPATH has its folder; only `bench/chaos.py` sets that.

    nan        [first, last): the batches of these numbers give a loss that is not a number
    in-save    the next save is killed between its arrays and its commit file; the file is removed first
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
            kill_before_commit()
        return module

    builtins.__import__ = watching
