"""A copy of the project with a Prefect server of its own, for the benches that start flow runs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from model.data import docs
from model.ports import free_port
from tests.pipeline import SMALL

PROJECT = Path(__file__).resolve().parents[1]
# A training of 2 layers × 64.
SMALL_TRAINING = {key: value for key, value in SMALL.items() if key.startswith(("tokenize.", "model."))} | {
    "pretrain.learning_rate": "1e-3",
    "pretrain.save_every_minutes": "0.1",
    "pretrain.evaluate_every_steps": "1000",
    "pretrain.hang_seconds": "5",
    "pretrain.verify_every_saves": "3",
}


class Sandbox:
    """`project/` holds the project's code and a text to train on, the interpreter's help topics; `runs/` the runs."""

    def __init__(self, folder: Path, **environment: str):
        self.folder, self.project, self.runs = folder, folder / "project", folder / "runs"
        self.port = free_port()
        self.environment = {
            **os.environ,
            "PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api",
            "PREFECT_HOME": str(folder / "prefect"),
            "KODA_RUNS": str(self.runs),
            "PYTHONPATH": str(self.project),
            **environment,
        }
        self.runs.mkdir()
        for name in ("flows", "tasks", "model", "prefect.yaml"):
            source, target = PROJECT / name, self.project / name
            target.parent.mkdir(exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
        (self.project / "text").mkdir()
        for number, topic in enumerate(docs.topics()):
            (self.project / f"text/{number:03}.txt").write_text(topic.text)

    def koda(self, *arguments: str) -> None:
        self.python("flows.cli.main", *arguments)

    def python(self, module: str, *arguments: str) -> None:
        """Run a module in the project; its output goes to standard error. Raises CalledProcessError."""
        command = [sys.executable, "-m", module, *arguments]
        subprocess.run(command, cwd=self.project, env=self.environment, check=True, stdout=sys.stderr)
