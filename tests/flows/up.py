"""A folder in which `koda up` runs, for tests of what a person meets there."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from flows.config import parsed
from model.files import read_lines
from model.ports import free_port
from tests.pipeline import KODA, SMALL, lay_out

PROJECT = Path(__file__).parents[2]
DEPLOYED = ("flows", "tasks", "model", "prefect.yaml")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")


class Up(NamedTuple):
    folder: Path
    port: int
    environment: dict[str, str]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def prefect(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "prefect", *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def pretrain(self, name: str, steps: int) -> None:
        self.start("pretrain", name=name, settings=small(steps))

    def start(self, deployment: str, **parameters: Any) -> None:
        """Start a run, as the form of the page does."""
        number = self.api(f"deployments/name/koda/{deployment}")["id"]
        run = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        self.api(f"deployments/{number}/create_flow_run", run)

    def runs(self, name: str) -> list[dict]:
        """Prefect's runs that work on the run of this name, the newest first."""
        runs = self.api("flow_runs/filter", {"sort": "EXPECTED_START_TIME_DESC"})
        return [run for run in runs if run["parameters"].get("name") == name]

    def cancel(self, name: str) -> None:
        """Cancel what runs under this name, as the button of the page does."""
        for run in self.runs(name):
            if run["state_type"] not in ENDED:
                self.api(f"flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLING"}})

    def end(self, name: str) -> None:
        """The same, and wait for it: only one run at a time has the GPUs, and the next test wants them."""
        self.cancel(name)
        await_(lambda: all(run["state_type"] in ENDED for run in self.runs(name)))

    def koda(self, *arguments: str) -> str:
        done = subprocess.run(
            [KODA, *arguments], cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def api(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The server's reply at this path of its API; with `body`, to a POST of it."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.address}/api/{path}", data, {"content-type": "application/json"})
        tries_left = 10
        while True:
            try:
                with urllib.request.urlopen(request) as reply:
                    return json.load(reply)
            except urllib.error.HTTPError as error:
                tries_left -= 1  # SQLite is locked for a moment, at 503; Prefect's client retries too
                if error.code != 503 or not tries_left:
                    raise
                time.sleep(1)

    def artifacts(self, name: str) -> list[dict]:
        """The newest artifacts whose keys begin with this."""
        return self.api("artifacts/latest/filter", {"artifacts": {"key": {"like_": f"{name}%"}}})

    def service(self, name: str) -> int:
        """The process that `koda up` started under this name."""
        return int((self.folder / f"runs/.prefect/{name}.lock").read_text())


@contextmanager
def brought_up(folder: Path, prose: str, **environment: str) -> Iterator[Up]:
    """`koda up` in a folder with a copy of the project and a text, and `koda down` at the end."""
    for name in DEPLOYED:
        source = PROJECT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    lay_out(folder, prose)
    port = free_port()
    up = Up(folder, port, {**os.environ, "PREFECT_API_URL": f"http://127.0.0.1:{port}/api", **environment})
    try:
        assert f"Koda is up: http://127.0.0.1:{port}" in up.koda("up")
        yield up
    finally:
        assert "ended: worker, files, server" in up.koda("down")
    assert up.koda("down") == "nothing was up\n"
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        pass  # nothing is left that listens


def small(steps: int) -> dict[str, dict[str, Any]]:
    """Settings of a training that takes seconds."""
    mine = {key: value for key, value in SMALL.items() if key.startswith(("tokenize.", "model.", "pretrain."))}
    return parsed({**mine, "pretrain.steps": str(steps)})


def await_(true: Callable[[], Any], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def events(training: Path, name: str) -> list[dict]:
    return [line for line in read_lines(training / "events.jsonl") if line["event"] == name]
