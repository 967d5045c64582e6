"""Every tracker shows what metrics.jsonl has, by its own reader, whatever was killed: the training, or the mirror."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from model.files import append_line, atomic_write, read_lines
from model.ports import free_port
from model.training.job import Job
from model.training.records import EVENTS, METRICS, Event, HeldoutMetrics, TrainingMetrics, log_event
from tasks.runs.paths import RUN_TOML
from tasks.trackers import TRACKERS
from tasks.trackers.mirror import Line, Sent, identify, kept_in, read
from tests.tasks.trackers.readers import read_back, shows_the_metrics

SECONDS = 300  # minutes on a machine with other work, where a mirror takes seconds alone


@pytest.fixture
def training(tmp_path: Path, job: Job) -> Path:
    """A training that has just begun."""
    folder = tmp_path / "mine" / "pretrain"
    folder.mkdir(parents=True)
    (folder.parent / RUN_TOML).touch()
    replace(job, folder=str(folder)).write(folder / "job.json")
    log_event(folder, Event.START, 0)
    return folder


@pytest.fixture
def tracker(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a tracker that can be reached, with nothing in it."""
    name = request.param
    if find_spec(TRACKERS[name].package) is None:
        pytest.skip(f"{name} is not installed")
    if name == "wandb":
        monkeypatch.setenv("WANDB_MODE", "offline")
    if name == "trackio":
        monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
        monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
    if name == "mlflow":
        with mlflow_server(tmp_path) as address:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
            yield name
        return
    yield name


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """The address of MLflow's own server, with its database in a folder."""
    port, log = free_port(), folder / "server.log"
    store = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "files")]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1", *store],
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
        )

    def is_up() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
                return bool(reply.read())
        except OSError:
            return False

    try:
        await_(is_up)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def await_(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def train(folder: Path, steps: range, offset: float) -> None:
    """Log a line every 10 of these steps, and a held-out loss every 50, before it as the trainer does."""
    for step in steps:
        if step % 50 == 0:
            append_line(folder / METRICS, asdict(HeldoutMetrics(step, time.time(), 4.0 + offset)))
        if step % 10 == 0:
            figures = TrainingMetrics(step, time.time(), 9 - step / 100 + offset, 1.0, 1e-3, 512 * step, 0.25)
            append_line(folder / METRICS, asdict(figures))


def go_back(folder: Path, step: int) -> None:
    """What a crash and the resume at a step do to the logs."""
    log_event(folder, Event.CRASH, step, cause="was killed by SIGKILL, from outside")
    kept = [line for line in read_lines(folder / METRICS) if line["step"] <= step]
    with atomic_write(folder / METRICS) as file:
        file.writelines(json.dumps(line) + "\n" for line in kept)
    log_event(folder, Event.RESUME, step)


def start(name: str, folder: Path, **options: int) -> subprocess.Popen:
    kept_in(folder).mkdir(exist_ok=True)
    with (kept_in(folder) / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tasks.trackers", name, str(folder)], stdout=log, stderr=log, **options
        )


def mirror(name: str, folder: Path) -> None:
    """Send what the tracker does not have."""
    code = start(name, folder, stdin=subprocess.DEVNULL).wait(SECONDS)
    assert code == 0, (kept_in(folder) / f"{name}.log").read_text()


@pytest.mark.chaos
@pytest.mark.parametrize("tracker", TRACKERS, indirect=True)
def test_tracker_shows_the_same_numbers_after_crashes_of_the_training_and_of_the_mirror(
    tracker: str, training: Path
) -> None:
    train(training, range(1, 96), 0.0)
    mirror(tracker, training)
    assert shows_the_metrics(tracker, training)
    go_back(training, 40)
    train(training, range(41, 61), 0.5)
    killed = start(tracker, training, stdin=subprocess.PIPE)
    try:
        state = kept_in(training) / f"{tracker}-{identify(training).id}.jsonl"  # type: ignore[union-attr]
        await_(lambda: read_lines(state)[-1]["kind"] == "event")  # they come last
    finally:
        killed.kill()
        killed.wait()
        killed.stdin.close()  # type: ignore[union-attr]
    train(training, range(61, 81), 0.5)
    go_back(training, 70)
    train(training, range(71, 131), 0.75)
    for _ in range(2):  # the second one has nothing to send
        mirror(tracker, training)
        assert shows_the_metrics(tracker, training)
        result = read_back(tracker, training)
        texts = ["crash at step 40: was killed by SIGKILL, from outside", "resume at step 40"]
        assert result.texts == [*texts, *(text.replace("40", "70") for text in texts)]
        times = [(name, step) for name, step, _ in result.figures].count(("train/loss", 90))
        assert times == (1 if tracker == "tensorboard" else 2)  # it hides what was repeated; the others keep both
        assert str(result.config["recipe.steps"]) == "60" and str(result.config["model.hidden_size"]) == "64"
        assert result.config["versions.koda"]


@pytest.mark.parametrize("tracker", ["tensorboard"], indirect=True)
def test_rewound_steps_are_hidden_before_they_are_all_repeated(tracker: str, training: Path) -> None:
    train(training, range(1, 96), 0.0)
    mirror(tracker, training)
    go_back(training, 40)
    train(training, range(41, 51), 0.5)
    mirror(tracker, training)
    assert shows_the_metrics(tracker, training)
    assert max(step for _, step, _ in read_back(tracker, training).figures) == 50


@pytest.mark.parametrize("tracker", ["mlflow"], indirect=True)
def test_server_that_is_down_is_one_line_and_gets_everything_later(
    tracker: str, training: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(training, range(1, 60), 0.0)
    address = os.environ["MLFLOW_TRACKING_URI"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    assert start(tracker, training, stdin=subprocess.DEVNULL).wait(SECONDS) == 1
    last = (kept_in(training) / "mlflow.log").read_text().splitlines()[-1]
    assert last.startswith("MlflowException: ") and "127.0.0.1" in last
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    mirror(tracker, training)
    assert shows_the_metrics(tracker, training)


def test_identity_is_of_one_training_and_of_none_that_is_built_in_its_place(training: Path) -> None:
    first = identify(training)
    assert first is not None and (first.run, first.stage) == ("mine", "pretrain")
    assert first.id.startswith("mine-pretrain-")
    log_event(training, Event.CRASH, 3)
    log_event(training, Event.RESUME, 3)
    assert identify(training) == first
    (training / EVENTS).unlink()
    assert identify(training) is None
    log_event(training, Event.START, 0)
    assert identify(training) != first


def test_training_of_a_ladder_belongs_to_its_run(training: Path) -> None:
    rung = training.parent / "ladder" / "a-100-0.01"
    rung.mkdir(parents=True)
    log_event(rung, Event.START, 0)
    identity = identify(rung)
    assert identity is not None and (identity.run, identity.stage) == ("mine", "ladder/a-100-0.01")
    assert identity.id.startswith("mine-ladder-a-100-0.01-")


def test_line_that_was_cut_short_is_sent_once_it_is_whole(tmp_path: Path, training: Path) -> None:
    train(training, range(1, 11), 0.0)
    whole = (training / METRICS).read_bytes()
    (training / METRICS).write_bytes(whole[:-20])
    assert not read(training)
    (training / METRICS).write_bytes(whole)
    (line,) = read(training)
    assert line.step == 10 and line not in Sent(tmp_path / "none")


def test_repeated_step_is_new_though_the_clock_was_set_back(tmp_path: Path) -> None:
    sent = Sent(tmp_path / "sent.jsonl")
    lines = [Line("train", step, 1000.0 + step) for step in (10, 20, 30)] + [Line("event", 20, 1030.5)]
    for line in lines:
        assert not sent.is_back_at(line)
        sent.add(line)
    sent.flushed.append((time.monotonic(), lines))
    sent.record(60)
    assert not any(line in Sent(sent.path) for line in lines)
    sent.record(0)
    sent = Sent(sent.path)
    assert all(line in sent for line in lines) and sent.newest == 30
    repeated = Line("train", 20, 500.0)
    assert repeated not in sent and sent.is_back_at(repeated)
    sent.add(repeated)
    assert lines[0] in sent and repeated in sent and lines[2] not in sent
    assert not sent.is_back_at(Line("heldout", 20, 501.0)) and not sent.is_back_at(Line("train", 30, 502.0))
