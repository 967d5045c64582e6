"""`koda up` and a deployment, by their real commands: server, pool, deployments and worker on this machine."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.flows.test_cli import KODA
from tests.flows.test_pipeline import SMALL

PROJECT = Path(__file__).parents[2]
DEPLOYED = ("flows", "tasks", "model", "prefect.yaml")


@pytest.mark.timeout(600)
def test_a_deployment_runs_on_server_and_worker(tmp_path: Path, prose: str) -> None:
    for name in DEPLOYED:
        source = PROJECT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    (tmp_path / "text").mkdir()
    for number, start in enumerate(range(0, 160_000, 4_000)):
        (tmp_path / "text" / f"{number:02}.txt").write_text(prose[start : start + 4_000])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    overrides = {**SMALL, "pretrain.steps": "20"}
    with (tmp_path / "up.log").open("w") as log:
        up = subprocess.Popen([KODA, "up"], cwd=tmp_path, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 150
        while "Koda is up" not in (shown := (tmp_path / "up.log").read_text()):
            assert time.monotonic() < deadline and up.poll() is None, shown
            time.sleep(0.5)
        assert f"http://127.0.0.1:{port}" in shown
        prefect = [sys.executable, "-m", "prefect", "deployment", "run", "koda/pretrain", "--watch"]
        done = subprocess.run(
            [*prefect, "--param", "name=deployed", "--param", f"overrides={json.dumps(overrides)}"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0 and "Completed" in done.stdout, done.stdout + done.stderr
    finally:
        up.send_signal(signal.SIGINT)
        assert up.wait(90) == 0
    status = subprocess.run([KODA, "status", "deployed", "--json"], cwd=tmp_path, capture_output=True, text=True)
    states = {stage["stage"]: stage["state"] for stage in json.loads(status.stdout)["stages"]}
    assert [states[s] for s in ("tokenize", "pretrain", "checkpoint", "sft")] == ["done"] * 3 + ["waiting"]
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        pass  # nothing is left that listens
