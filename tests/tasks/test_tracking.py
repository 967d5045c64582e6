"""Trackers beside a training: they show it, and can neither stop nor change nor delay it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from model.exit_codes import DONE
from model.files import read_lines
from model.training.heartbeat import Heartbeat
from model.training.job import Job
from model.training.records import Event, log_event, newest_step, read_metrics
from tasks import tracking, training
from tasks.pretrain import Pretrain
from tasks.runs.paths import RUN_TOML
from tasks.supervise import ProcessFailed
from tasks.tracking import tracked
from tests.tasks.trackers.readers import read_back, shows_the_metrics


def trainer(job: Job) -> subprocess.Popen:
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    job.write(folder / "job.json")
    return subprocess.Popen([sys.executable, "-m", "model.training", str(folder / "job.json"), str(job.recipe.steps)])


def await_(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 300
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mirrors do not wait for what else this machine computes."""
    monkeypatch.setattr(tracking, "NICENESS", 0)


@pytest.fixture
def here(job: Job, tmp_path: Path) -> Job:
    """A training of a run, which logs each step."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / RUN_TOML).touch()
    recipe = replace(job.recipe, log_every_steps=1, evaluate_every_steps=10)
    return replace(job, folder=str(tmp_path / "mine" / "pretrain"), recipe=recipe)


def kill_after_each(steps: tuple[int, ...], folder: Path) -> None:
    """Kill the trainer once it has logged each of these steps and saved the 20th before, and the tracker has them."""
    for step in steps:
        await_(lambda step=step: (beat := Heartbeat.read(folder)) and beat["step"] > step)
        await_(lambda step=step: newest_step(folder) >= step // 20 * 20)
        pid = (Heartbeat.read(folder) or {})["pid"]
        os.kill(pid, signal.SIGSTOP)

        def is_sent(step: int = step) -> bool:
            states = folder.parent.glob(".pretrain.tracking/tensorboard-*.jsonl")
            return any(line["step"] == step for state in states for line in read_lines(state)[-60:])

        await_(is_sent)
        os.killpg(pid, signal.SIGKILL)


@pytest.mark.chaos
def test_training_of_two_segments_with_kills_is_shown_as_its_metrics_have_it(
    here: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was trained after the last save comes again. All of it is one run in the tracker."""
    pytest.importorskip("tensorboard")
    pytest.importorskip("tensorboardX")
    attempt, folder = training.segment.fn, Path(here.folder)

    def segment(*arguments: Any) -> None:
        while True:
            try:
                return attempt(*arguments)
            except ProcessFailed:
                continue

    monkeypatch.setattr(training.training_page, "page", lambda *_: contextlib.nullcontext())  # it needs a server
    monkeypatch.setattr(training, "segment", SimpleNamespace(with_options=lambda **_: segment))
    folder.mkdir()
    killer = threading.Thread(target=kill_after_each, args=((25, 45), folder))
    killer.start()
    settings = Pretrain(steps=60, hang_seconds=600, track=("tensorboard",))
    training.run_training("pretrain", here, [30, 60], settings)
    killer.join()
    assert shows_the_metrics("tensorboard", folder)
    texts = read_back("tensorboard", folder).texts
    shown = [text.partition(":")[0].split(" at step ") for text in texts]
    shown = [line for line in shown if line[0] != "unfinished checkpoint"]  # of a kill during a save
    assert [event for event, _ in shown] == ["crash", "resume", "crash", "resume"]
    assert shown[0][1] == shown[1][1] and shown[2][1] == shown[3][1]
    assert not [path for path in folder.rglob("*") if "track" in path.name or "tensorboard" in path.name]


@pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow is not installed")
def test_tracker_whose_server_never_replies_changes_no_figure_and_delays_the_end_by_its_limit_at_most(
    here: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "LAST", 2.0)
    alone = replace(here, folder=here.folder + "-alone")
    assert trainer(alone).wait() == DONE
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(300)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        with tracked(Path(here.folder), "pretrain", ["mlflow"]):
            assert trainer(here).wait() == DONE
            connection, _ = server.accept()
            ended = time.monotonic()
        assert time.monotonic() - ended < 2 + 5
        connection.close()
    losses = [[line.loss for line in read_metrics(Path(one.folder)).training] for one in (here, alone)]
    assert losses[0] == losses[1] and len(losses[0]) == 60
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("pretrain   tracker mlflow did not get everything: it was not ready 2 s after the end")
    assert f"`python -m tasks.trackers mlflow {here.folder} < /dev/null` sends the rest" in line


def test_tracker_that_fails_is_one_line_and_gets_everything_once_it_works(
    here: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    pytest.importorskip("tensorboardX")
    monkeypatch.setattr(tracking, "SHORTEST_PAUSE", 0.1)
    monkeypatch.setattr(tracking, "LAST", 300.0)
    folder = Path(here.folder)
    in_its_way = folder.parent / "tensorboard"
    in_its_way.touch()
    with tracked(folder, "pretrain", ["tensorboard"]):
        log = folder.parent / ".pretrain.tracking/tensorboard.log"
        assert trainer(here).wait() == DONE
        await_(lambda: log.read_text().count("NotADirectoryError: ") >= 4)  # two attempts; in each the cause, twice
        in_its_way.unlink()
    assert shows_the_metrics("tensorboard", folder)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("pretrain   tracker tensorboard fails, and is tried again while the training goes on: Not")
    assert str(in_its_way) in line and str(log) in line


def test_nothing_is_waited_for_after_an_error(here: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(here.folder)
    folder.mkdir()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), tracked(folder, "pretrain", ["tensorboard", "mlflow"]):
        raise KeyboardInterrupt
    assert time.monotonic() - began < 5


def test_mirror_dies_with_the_process_of_the_run(here: Job) -> None:
    pytest.importorskip("tensorboardX")
    folder = Path(here.folder)
    folder.mkdir()
    here.write(folder / "job.json")
    log_event(folder, Event.START, 0)
    code = (
        "import sys, time; from pathlib import Path; from tasks.tracking import tracked\n"
        "with tracked(Path(sys.argv[1]), 'pretrain', ['tensorboard']): time.sleep(600)"
    )
    run = subprocess.Popen([sys.executable, "-c", code, str(folder)])
    lock = folder.parent / ".pretrain.tracking/tensorboard.lock"
    try:
        await_(lambda: lock.is_file() and lock.read_text())
    finally:
        run.kill()
        run.wait()
    pid = int(lock.read_text().split()[1])
    await_(lambda: not Path(f"/proc/{pid}").exists())
