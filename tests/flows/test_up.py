"""`koda up` and its deployments, by their real commands: server, pool, automations and worker on this machine."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from flows.config import parsed
from model.files import held
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
        mine = {key: value for key, value in SMALL.items() if key.startswith(("tokenize.", "model.", "pretrain."))}
        settings = parsed({**mine, "pretrain.steps": str(steps)})
        given = ["--param", f"name={name}", "--param", f"settings={json.dumps(settings)}"]
        return self.prefect("deployment", "run", "koda/pretrain", *given, *more)

    def runs(self, name: str) -> list[dict]:
        found = json.loads(self.prefect("flow-run", "ls", "-o", "json"))
        return [run for run in found if run["name"] == f"{name} · pretrain"]

    def koda(self, *arguments: str) -> str:
        done = subprocess.run(
            [KODA, *arguments], cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def artifacts(self, name: str) -> list[dict]:
        """The newest artifacts whose keys begin with this."""
        asked = {"artifacts": {"key": {"like_": f"{name}%"}}}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/artifacts/latest/filter",
            json.dumps(asked).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request) as reply:
            return json.load(reply)

    def service(self, name: str) -> int:
        """The process that `koda up` started under this name."""
        return int((self.folder / f"runs/.prefect/{name}.lock").read_text())


@contextmanager
def brought_up(folder: Path, prose: str, **environment: str) -> Iterator[Up]:
    """`koda up` in a folder with a copy of the project and a text, and `koda down` at the end."""
    for name in DEPLOYED:
        source = PROJECT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    (folder / "text").mkdir()
    for number, start in enumerate(range(0, 160_000, 4_000)):
        (folder / "text" / f"{number:02}.txt").write_text(prose[start : start + 4_000])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    up = Up(folder, port, {**os.environ, "PREFECT_API_URL": f"http://127.0.0.1:{port}/api", **environment})
    try:
        assert f"Koda is up: http://127.0.0.1:{port}" in up.koda("up")
        yield up
    finally:
        assert "ended: worker, files, server" in up.koda("down")
    assert up.koda("down") == "nothing was up\n"
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        pass  # nothing is left that listens


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, prose: str) -> Iterator[Up]:
    with brought_up(tmp_path_factory.mktemp("up"), prose) as up:
        yield up


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


@pytest.mark.timeout(600)
def test_a_second_up_starts_only_what_is_missing(up: Up) -> None:
    services = ("server", "files", "worker")
    before = {name: up.service(name) for name in services}
    for killed in (None, *services):
        if killed:
            os.kill(up.service(killed), signal.SIGKILL)
            assert f"not running: {killed}; `koda up` starts what is missing" in up.koda("status", "deployed")
        up.koda("up")
        after = {name: up.service(name) for name in services}
        assert {name for name in services if after[name] != before[name]} == ({killed} if killed else set())
        before = after


@pytest.mark.timeout(600)
def test_a_run_whose_process_is_killed_is_started_again(up: Up) -> None:
    """By the automation, with the same parameters; the page of the run then shows what has happened."""
    up.pretrain("killed", 3000)
    training = up.folder / "runs/killed/pretrain"
    await_step(training, 100)
    flow = int((up.folder / "runs/killed/.lock").read_text().split()[1])
    os.kill(flow, signal.SIGKILL)
    await_(lambda: sorted(run["state_type"] for run in up.runs("killed")) == ["COMPLETED", "CRASHED"])
    again, first = (run["parameters"] for run in up.runs("killed"))
    assert again == first and _events(training, "resume")
    found = {artifact["key"]: artifact for artifact in up.artifacts("killed-pretrain")}
    assert {key.rpartition("-")[2] for key in found} == {"progress", "segments", "restarts", "curve"}
    assert found["killed-pretrain-progress"]["data"] == 100
    with urllib.request.urlopen(found["killed-pretrain-curve"]["data"]) as reply:
        assert reply.read().startswith(b"\x89PNG")
    with pytest.raises(urllib.error.HTTPError):  # where the secrets of the server lie
        urllib.request.urlopen((up.folder / "runs/.prefect/files.url").read_text() + "/.prefect/prefect.db")


@pytest.mark.timeout(900)
def test_a_run_that_loses_its_worker_saves_and_goes_on_under_the_next(up: Up) -> None:
    """A run does not go on without one: nobody could cancel it. The worker is killed once, and ended by `koda down`."""
    up.pretrain("orphan", 100_000)
    run, saved = up.folder / "runs/orphan", 0
    for number, end in enumerate((lambda: os.kill(up.service("worker"), signal.SIGKILL), lambda: up.koda("down")), 1):
        await_step(run / "pretrain", saved + 50)
        end()
        await_(lambda: not held(run / ".lock"), 40)
        saved = _events(run / "pretrain", "preemption")[-1]["step"]
        up.koda("up")
        assert await_resume(run / "pretrain", number) == saved
    assert sorted(life["state_type"] for life in up.runs("orphan")) == ["CRASHED", "CRASHED", "RUNNING"]


def await_step(training: Path, step: int) -> None:
    await_(lambda: (Heartbeat.read(training) or {"step": 0})["step"] > step)


def await_resume(training: Path, number: int) -> int:
    """The step at which the training goes on for so many-th time."""
    await_(lambda: len(_events(training, "resume")) == number)
    return _events(training, "resume")[-1]["step"]


def await_(true: Callable[[], bool], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def _events(training: Path, name: str) -> list[dict]:
    return [line for line in lines(training / "events.jsonl") if line["event"] == name]
