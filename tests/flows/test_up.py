"""`koda up` and its deployments, by their real commands: server, pool, automations and worker on this machine."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from model.training.protocol import Heartbeat, lines
from tests.flows.test_cli import KODA
from tests.flows.test_pipeline import SMALL

PROJECT = Path(__file__).parents[2]
DEPLOYED = ("flows", "tasks", "model", "prefect.yaml")


class Up(NamedTuple):
    """A folder in which `koda up` is at work."""

    folder: Path
    port: int
    environment: dict[str, str]

    def prefect(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "prefect", *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def pretrain(self, name: str, steps: int, *more: str) -> str:
        overrides = {**SMALL, "pretrain.steps": str(steps)}
        given = ["--param", f"name={name}", "--param", f"overrides={json.dumps(overrides)}"]
        return self.prefect("deployment", "run", "koda/pretrain", *given, *more)

    def runs(self, name: str) -> list[dict]:
        return [run for run in json.loads(self.prefect("flow-run", "ls", "-o", "json")) if run["name"] == name]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, prose: str) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("up")
    for name in DEPLOYED:
        source = PROJECT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    (folder / "text").mkdir()
    for number, start in enumerate(range(0, 160_000, 4_000)):
        (folder / "text" / f"{number:02}.txt").write_text(prose[start : start + 4_000])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    with (folder / "up.log").open("w") as log:
        process = subprocess.Popen([KODA, "up"], cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 150
        while "Koda is up" not in (shown := (folder / "up.log").read_text()):
            assert time.monotonic() < deadline and process.poll() is None, shown
            time.sleep(0.5)
        assert f"http://127.0.0.1:{port}" in shown
        yield Up(folder, port, environment)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(90) == 0
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        pass  # nothing is left that listens


@pytest.mark.timeout(600)
def test_a_deployment_runs_on_server_and_worker(up: Up) -> None:
    assert "Completed" in up.pretrain("deployed", 20, "--watch")
    status = subprocess.run([KODA, "status", "deployed", "--json"], cwd=up.folder, capture_output=True, text=True)
    found = json.loads(status.stdout)
    states = {stage["stage"]: stage["state"] for stage in found["stages"]}
    assert [states[s] for s in ("tokenize", "pretrain", "checkpoint", "sft")] == ["done"] * 3 + ["waiting"]
    assert sum(found["goodput"].values()) == pytest.approx(100, abs=0.1)


@pytest.mark.timeout(600)
def test_a_cancelled_training_saves_and_the_next_run_takes_that_save(up: Up) -> None:
    up.pretrain("cancelled", 100_000)
    training = up.folder / "runs/cancelled/pretrain"
    deadline = time.monotonic() + 120
    while not (beat := Heartbeat.read(training)) or beat["step"] < 30:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (run,) = up.runs("cancelled")
    up.prefect("flow-run", "cancel", run["id"])
    deadline = time.monotonic() + 60
    while up.runs("cancelled")[0]["state_type"] != "CANCELLED" or not _events(training, "preemption"):
        assert time.monotonic() < deadline, up.runs("cancelled")
        time.sleep(0.5)
    saved = _events(training, "preemption")[0]["step"]
    assert saved >= beat["step"] and (training / f"checkpoints/{saved}/COMMIT.json").is_file()
    up.pretrain("cancelled", 100_000)
    while not (resumed := _events(training, "resume")):
        assert time.monotonic() < deadline + 60
        time.sleep(0.2)
    assert resumed[0]["step"] == saved


def _events(training: Path, name: str) -> list[dict]:
    return [line for line in lines(training / "events.jsonl") if line["event"] == name]
