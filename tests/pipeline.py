"""A run that is small enough for a test: its settings, its text and its commands."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from model.files import lock_file
from model.training.heartbeat import Heartbeat

KODA = str(Path(sys.executable).with_name("koda"))
SMALL = {
    "tokenize.source": "text",
    "tokenize.vocab_size": "512",
    "tokenize.heldout_fraction": "0.1",
    "model.hidden_size": "64",
    "model.num_hidden_layers": "2",
    "model.num_attention_heads": "4",
    "model.num_key_value_heads": "2",
    "model.intermediate_size": "128",
    "model.max_position_embeddings": "64",
    "pretrain.steps": "120",
    "pretrain.save_every_steps": "20",
    "pretrain.warmup_steps": "5",
    "sft.steps": "60",
    "sft.source": "rows.jsonl",
    "sft.answer_limit": "20",
    "extend.steps": "12",
    "extend.passkeys": "2",
    "evaluate.items": "60",
}


def shadow_packages(folder: Path) -> None:
    """Files with the names of packages, as the folder of a user may contain, and which no process of a run must import.

    Not for `koda up`, which is started in the project's own folder and runs what lies there.
    """
    for name in ("model.py", "flows.py", "random.py"):
        (folder / name).write_text("raise ImportError('of the current folder')")


def lay_out(folder: Path, prose: str) -> None:
    """A text of some 60 documents, and conversations that always end the same way."""
    (folder / "text").mkdir()
    for number, start in enumerate(range(0, 240_000, 4_000)):
        (folder / "text" / f"{number:02}.txt").write_text(prose[start : start + 4_000])
    (folder / "rows.jsonl").write_text(
        "".join(f'{{"instruction": "Say {n}", "context": "", "response": "Yes."}}\n' for n in range(300))
    )


def command(name: str, **changes: str) -> list[str]:
    """The command of such a run, with the settings that a test `changes`."""
    settings = {**SMALL, **changes}
    return [KODA, "run", "--name", name, *(part for k, v in settings.items() for part in ("--set", f"{k}={v}"))]


def run(folder: Path, *arguments: str) -> str:
    """Run a command that must succeed; returns what it printed."""
    ended = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def build_once(folder: Path, prose: str) -> Path:
    """The run, through all stages, in `folder`; of several processes that need it, the first builds it."""
    with lock_file(folder.with_suffix(".lock"), str(folder), 600):
        if not folder.exists():
            building = folder.with_suffix(".building")
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir()
            lay_out(building, prose)
            shadow_packages(building)
            run(building, *command("small"))
            building.rename(folder)
    return folder


def status(folder: Path, name: str) -> dict[str, Any]:
    return json.loads(run(folder, KODA, "status", name, "--json"))


def await_step(folder: Path, step: int, flow: subprocess.Popen) -> int:
    """Wait until the training has reached `step`; returns the process ID of the trainer."""
    deadline = time.monotonic() + 300
    while True:
        assert time.monotonic() < deadline and flow.poll() is None
        beat = Heartbeat.read(folder / "pretrain")
        if beat and beat["phase"] == "train" and beat["step"] >= step:
            return beat["pid"]
        time.sleep(0.01)
