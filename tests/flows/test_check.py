"""What `koda/check` does about a run, on a real Prefect server."""

import fcntl
import os
import socket
import subprocess
from pathlib import Path
from typing import IO
from uuid import uuid4

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Cancelling, Completed, Crashed, Failed, Pending, Running, Scheduled

from flows.check import PREFIX, check, is_running, was_killed
from flows.retry import RESUMES
from model.errors import KodaError
from tasks.runs.lock import LOCK, lock


def run_in(state: State, client: SyncPrefectClient, tag: str = RESUMES) -> FlowRun:
    """A flow run in this state, of a deployment of its own, that works on the run `checked`."""
    flow = client.create_flow_from_name("koda")
    deployment = client.create_deployment(flow, f"sft-{uuid4()}", tags=["koda", tag])
    run = client.create_flow_run_from_deployment(deployment, parameters={"name": "checked", "rebuild": False})
    if state.is_cancelling():  # Prefect makes Cancelled of it where the run never began
        client.set_flow_run_state(run.id, Running(), force=True)
    client.set_flow_run_state(run.id, state, force=True)
    run = client.read_flow_run(run.id)
    assert run.state.type == state.type
    return run


def checked(run: FlowRun, client: SyncPrefectClient) -> str:
    """Check the run; returns the type of its state afterwards."""
    check(flow_run=f"{PREFIX}{run.id}")
    return client.read_flow_run(run.id).state.type.value


def retries(run: FlowRun, client: SyncPrefectClient) -> list[FlowRun]:
    """The other flow runs of the deployment of a run."""
    its = DeploymentFilter(id=DeploymentFilterId(any_=[run.deployment_id]))
    return [other for other in client.read_flow_runs(deployment_filter=its) if other.id != run.id]


def taken(folder: Path, run: FlowRun, monkeypatch: pytest.MonkeyPatch) -> IO[str]:
    """The lock of a folder, as the process of this flow run takes it."""
    folder.mkdir(parents=True)
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", str(run.id))
    try:
        return lock(folder, folder.name)
    finally:
        monkeypatch.delenv("PREFECT__FLOW_RUN_ID")


def test_running_run_without_a_process_is_crashed_and_retried_once(client: SyncPrefectClient) -> None:
    run = run_in(Running(), client)
    assert checked(run, client) == "CRASHED"
    (retry,) = retries(run, client)
    assert retry.parameters == run.parameters and retry.state.is_scheduled()
    assert checked(run, client) == "CRASHED"
    assert [again.id for again in retries(run, client)] == [retry.id]


def test_run_that_prefect_knows_to_have_crashed_is_retried(client: SyncPrefectClient) -> None:
    run = run_in(Crashed(), client)
    assert checked(run, client) == "CRASHED"
    assert len(retries(run, client)) == 1


def test_run_of_a_deployment_that_does_not_resume_is_not_retried(client: SyncPrefectClient) -> None:
    run = run_in(Running(), client, tag="nightly")
    assert checked(run, client) == "CRASHED"
    assert retries(run, client) == []


@pytest.mark.parametrize("folder", ["checked", "checked/nightly"])
@pytest.mark.parametrize("state", [Running, Cancelling])
def test_run_whose_process_has_a_lock_is_left_alone(
    client: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: type[State], folder: str
) -> None:
    run = run_in(state(), client)
    with taken(tmp_path / folder, run, monkeypatch):
        assert is_running(run.id)
        assert checked(run, client) == run.state.type.value
    assert not is_running(run.id)  # its ID is still in the file
    assert retries(run, client) == []


def test_run_was_killed_where_the_process_that_had_its_lock_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not where it may be about to say how it ended, where it is another machine's, or where there never was one."""
    monkeypatch.setenv("KODA_RUNS", str(tmp_path))
    number = uuid4()
    assert not was_killed(number)
    file, gone = tmp_path / "checked" / LOCK, subprocess.Popen(["true"])
    gone.wait()
    file.parent.mkdir()
    for pid, machine, killed in (
        (gone.pid, socket.gethostname(), True),
        (gone.pid, "another", False),
        (os.getpid(), socket.gethostname(), False),
    ):
        file.write_text(f"process {pid} on {machine} since 12:00 (flow run {number})\n")
        assert was_killed(number) == killed
        assert not was_killed(uuid4())
    file.write_text(f"process {gone.pid} on {socket.gethostname()} since 12:00 (flow run {number})\n")
    with file.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert not was_killed(number)


def test_lock_names_what_was_killed_looks_for(
    client: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_in(Running(), client)
    taken(tmp_path / "checked", run, monkeypatch).close()
    text = (tmp_path / "checked" / LOCK).read_text()
    assert text.startswith(f"process {os.getpid()} on {socket.gethostname()} since ") and str(run.id) in text
    assert not was_killed(run.id)  # its process is this one


def test_lock_of_another_flow_run_proves_nothing(
    client: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, other = run_in(Running(), client), run_in(Running(), client)
    with taken(tmp_path / "checked", other, monkeypatch):
        assert checked(run, client) == "CRASHED"
        assert checked(other, client) == "RUNNING"


def test_run_that_is_to_be_cancelled_and_has_no_process_is_cancelled(client: SyncPrefectClient) -> None:
    run = run_in(Cancelling(), client)
    assert checked(run, client) == "CANCELLED"
    assert retries(run, client) == []


@pytest.mark.parametrize("state", [Scheduled, Pending, Completed, Failed])
def test_run_that_has_not_begun_or_has_ended_is_left_alone(client: SyncPrefectClient, state: type[State]) -> None:
    run = run_in(state(), client)
    assert checked(run, client) == run.state.type.value
    assert retries(run, client) == []


@pytest.mark.parametrize("number", ["", "checked", f"{PREFIX}checked", "prefect.task-run.x"])
def test_invalid_id_is_refused(client: SyncPrefectClient, number: str) -> None:
    with pytest.raises(KodaError, match=f"flow_run = '{number}': the ID of a flow run"):
        check(flow_run=number)
