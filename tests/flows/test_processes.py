"""Two processes that the flow trains with, as one."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from model.errors import KodaError
from model.training.protocol import lines
from tasks.train import peers
from tests.flows.test_pipeline import await_step, command, project
from tests.tasks.test_devices import smi

__all__ = ["project"]  # the fixture


@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", ["0", "1"])
def test_where_one_process_dies_all_go_on_from_the_last_commit(project: Path, number: str) -> None:
    folder = project / f"runs/two-{number}"
    arguments = command(folder.name, **{"pretrain.processes": "2", "pretrain.steps": "300", "pretrain.segments": "1"})
    with (project / f"{folder.name}.log").open("w") as log:
        flow = subprocess.Popen([*arguments, "--until", "checkpoint"], cwd=project, stdout=log, stderr=log)
    first = await_step(folder, 25, flow)
    both = trainers(folder)
    assert len(both) == 2 and both["0"] == first
    os.kill(both[number], signal.SIGKILL)
    assert flow.wait(400) == 0, (project / f"{folder.name}.log").read_text()
    told = lines(folder / "pretrain/events.jsonl")
    (crash,) = [line for line in told if line["event"] == "crash"]
    (resume,) = [line for line in told if line["event"] == "resume"]
    assert resume["step"] == crash["step"] >= 20 and trainers(folder) == {}
    assert (folder / "checkpoint/stage.json").is_file()


def trainers(folder: Path) -> dict[str, int]:
    """The processes that train this run, by their number in the training."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"runs/{folder.name}/pretrain/job.json".encode() in (path / "cmdline").read_bytes():
                environment = dict(e.split(b"=", 1) for e in (path / "environ").read_bytes().split(b"\0") if b"=" in e)
                found[environment[b"JAX_PROCESS_ID"].decode()] = int(path.name)
        except OSError:
            continue
    return found


def test_gpus_are_shared_out_evenly_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(tmp_path, monkeypatch, "0, 3, 46068", "1, 3, 46068", "2, 3, 46068", "3, 3, 46068")
    assert [peer["CUDA_VISIBLE_DEVICES"] for peer in peers(2)] == ["0,1", "2,3"]
    with pytest.raises(KodaError, match="processes = 3: 4 GPUs cannot be shared out evenly"):
        peers(3)
