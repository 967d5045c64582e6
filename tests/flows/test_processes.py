"""A training of two processes, which the flow starts, or other machines."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from model.errors import KodaError
from model.files import read_lines
from model.ports import free_port
from model.training import distributed
from model.training.heartbeat import Heartbeat
from model.training.records import Event, EventRecord, log_event, read_events
from tasks.training import _await_others, peers
from tests.flows.up import await_
from tests.pipeline import SMALL, await_step, command
from tests.tasks.test_devices import smi


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_all_processes_resume_from_the_last_commit_when_one_dies(project: Path) -> None:
    """First the one that does not write, then the one that does."""
    folder = project / "runs/two"
    arguments = command(folder.name, **{"pretrain.processes": "2", "pretrain.steps": "160", "pretrain.segments": "1"})
    with (project / "two.log").open("w") as log:
        flow = subprocess.Popen([*arguments, "--until", "checkpoint"], cwd=project, stdout=log, stderr=log)
    for killed, step in (("1", 25), ("0", 85)):
        writing = await_step(folder, step, flow)
        both = trainers(folder)
        assert len(both) == 2 and both["0"] == writing
        os.kill(both[killed], signal.SIGKILL)
    assert flow.wait(400) == 0, (project / "two.log").read_text()
    events = read_lines(folder / "pretrain/events.jsonl")
    crashes, resumes = ([line["step"] for line in events if line["event"] == kind] for kind in ("crash", "resume"))
    assert crashes == resumes and len(crashes) == 2 and crashes[0] >= 20 and crashes[1] >= 80
    assert trainers(folder) == {} and (folder / "checkpoint/stage.json").is_file()


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_slow_process_is_named(project: Path) -> None:
    """The second of two is stopped and continued all the time, so that it has a fifth of its processor."""
    folder = project / "runs/uneven"
    settings = {"pretrain.processes": "2", "pretrain.steps": "400", "pretrain.evaluate_every_steps": "20"}
    arguments = command(folder.name, **settings, **{"pretrain.segments": "1"})
    with (project / "uneven.log").open("w") as log:
        flow = subprocess.Popen([*arguments, "--until", "checkpoint"], cwd=project, stdout=log, stderr=log)
    await_step(folder, 45, flow)
    slow, before = trainers(folder)["1"], stragglers(folder)  # another test may have slowed either for a moment
    deadline = time.monotonic() + 120
    while not (named := [each for each in stragglers(folder) if each not in before and "process 1" in each.cause]):
        assert time.monotonic() < deadline and flow.poll() is None, (project / "uneven.log").read_text()
        for number, seconds in ((signal.SIGSTOP, 0.008), (signal.SIGCONT, 0.002)):
            os.kill(slow, number)
            time.sleep(seconds)
    (straggler,) = named
    assert re.match(r"process 1 on \S+ computes \d+\.\d times as slowly as the fastest", straggler.cause)
    assert flow.wait(300) == 0, (project / "uneven.log").read_text()
    assert f"straggler at step {straggler.step}: process 1 on" in (project / "uneven.log").read_text()


def stragglers(folder: Path) -> list[EventRecord]:
    return [record for record in read_events(folder / "pretrain") if record.event is Event.STRAGGLER]


@pytest.mark.timeout(600)
def test_run_waits_for_processes_of_other_machines_and_then_continues(project: Path) -> None:
    folder, log = project / "runs/others", project / "others.log"
    arguments = command(folder.name, **{"pretrain.processes": "0", "pretrain.fsdp": "2"})
    with log.open("w") as output:
        flow = subprocess.Popen([*arguments, "--until", "checkpoint"], cwd=project, stdout=output, stderr=output)
    order = f"runs/{folder.name}/pretrain/job.json"
    await_(lambda: f"python -m model.training {order} on each" in log.read_text().replace("`", ""))
    assert trainers(folder) == {}
    named = {distributed.ADDRESS: f"127.0.0.1:{free_port()}", distributed.COUNT: "2"}
    hosts = [
        subprocess.Popen(
            [sys.executable, "-P", "-m", "model.training", order],
            cwd=project,
            env={**os.environ, **named, distributed.NUMBER: number},
            stderr=subprocess.DEVNULL,
        )
        for number in "01"
    ]
    assert [host.wait(300) for host in hosts] == [0, 0]
    assert flow.wait(100) == 0, log.read_text()
    assert read_lines(folder / "pretrain/events.jsonl")[-1]["step"] == int(SMALL["pretrain.steps"])
    assert (folder / "checkpoint/stage.json").is_file()


@pytest.mark.parametrize("trains", [False, True])
def test_machine_that_refuses_to_train_ends_the_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trains: bool
) -> None:
    """But not where others train: it was one too many."""
    monkeypatch.setattr("tasks.training.REFUSED_FOR", 2.0)
    log_event(tmp_path, Event.REFUSED, 0, cause="an earlier time")
    ticks, heart = [], Heartbeat(tmp_path, 0.0)

    def tick() -> None:
        ticks.append(time.monotonic())
        if len(ticks) == 1:
            log_event(tmp_path, Event.REFUSED, 0, cause="fsdp = 2 does not divide")
        if len(ticks) == 2 and trains:
            heart.beat("compile", 0)  # and then nothing for as long as that takes
        if len(ticks) == 6:
            raise TimeoutError

    with pytest.raises(TimeoutError if trains else KodaError, match=None if trains else "refused to train: fsdp = 2"):
        _await_others("pretrain", "job.json", tmp_path, 10, tick)


def trainers(folder: Path) -> dict[str, int]:
    """The processes that train this run, by their number in the training."""
    pids = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"runs/{folder.name}/pretrain/job.json".encode() in (path / "cmdline").read_bytes():
                environment = dict(e.split(b"=", 1) for e in (path / "environ").read_bytes().split(b"\0") if b"=" in e)
                pids[environment[b"JAX_PROCESS_ID"].decode()] = int(path.name)
        except OSError:
            continue
    return pids


def test_gpus_are_shared_out_evenly_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(tmp_path, monkeypatch, *(f"{number}, GPU-a{number}b2, 3, 46068" for number in range(4)))
    assert [peer["CUDA_VISIBLE_DEVICES"] for peer in peers(2)] == ["0,1", "2,3"]
    with pytest.raises(KodaError, match="processes = 3: 4 GPUs cannot be shared out evenly"):
        peers(3)
