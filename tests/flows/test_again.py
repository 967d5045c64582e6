"""What is started again after a crash, and with which parameters, on a real Prefect server."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.states import Crashed, Running

from flows.again import RESUMES, again, remaining
from model.errors import KodaError
from model.files import write_json
from tasks.run import LIVES, WITHOUT_PROGRESS


@pytest.fixture
def client(prefect_server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncPrefectClient]:
    monkeypatch.setenv("KODA_RUNS", str(tmp_path))
    with get_client(sync_client=True) as client:
        yield client


def crashed(client: SyncPrefectClient, name: str, tag: str = RESUMES, run: FlowRun | None = None) -> FlowRun:
    """A crashed run of `koda/sft`; `run`: that one, which was there already."""
    if run is None:
        flow = client.create_flow_from_name("koda")
        deployment = client.create_deployment(flow, f"sft-{tag}", tags=[tag])
        given = {"parameters": {"name": name, "anew": True}, "job_variables": {"gpus": 2}}
        run = client.create_flow_run_from_deployment(deployment, **given)
    client.set_flow_run_state(run.id, Crashed(), force=True)
    return client.read_flow_run(run.id)


def test_a_crashed_run_has_one_next_life_with_what_it_was_given(client: SyncPrefectClient) -> None:
    run = crashed(client, "once")
    first, second = again(client, run), again(client, run)
    assert first is not None and second is not None and first.id == second.id != run.id
    assert (first.parameters, first.job_variables) == (run.parameters, {"gpus": 2})
    assert again(client, crashed(client, "once", "koda")) is None


def test_what_never_begins_is_given_up_and_what_began_counts_itself(client: SyncPrefectClient, tmp_path: Path) -> None:
    run = crashed(client, "never")
    for _ in range(WITHOUT_PROGRESS - 1):
        run = crashed(client, "never", run=again(client, run))
    with pytest.raises(KodaError, match=f"crashed {WITHOUT_PROGRESS} times before it began"):
        again(client, run)
    (tmp_path / "never").mkdir()
    (tmp_path / "never" / LIVES).write_text(f'{{"time": 1, "event": "begin", "flow_run": "{run.id}", "reached": []}}\n')
    assert again(client, run) is not None


def test_who_starts_it_again_has_a_new_budget(client: SyncPrefectClient) -> None:
    run = crashed(client, "mended")
    for _ in range(WITHOUT_PROGRESS - 1):
        run = crashed(client, "mended", run=again(client, run))
    assert again(client, crashed(client, "mended")) is not None


def test_a_run_that_a_person_tried_again_is_started_again_too(client: SyncPrefectClient) -> None:
    """Its own next life ended long ago."""
    run = crashed(client, "retried")
    first = again(client, run)
    client.set_flow_run_state(run.id, Running(), force=True)
    assert again(client, crashed(client, "retried", run=run)).id != first.id


def test_what_a_life_has_built_anew_the_next_takes_as_it_stands(tmp_path: Path) -> None:
    for stage, minute in (("convert", 30), ("evaluate", 10), ("publish", 10)):
        record = {"key": "", "figures": {}, "finished": f"2026-01-01T00:{minute}:00Z"}
        write_json(tmp_path / stage / "stage.json", record)
    then = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    whole = {"start": "convert", "until": "", "name": "x"}
    assert remaining(whole, "pipeline", tmp_path, then + 20 * 60) == whole | {"start": "evaluate"}
    assert remaining(whole, "pipeline", tmp_path, then + 40 * 60) == whole
    assert remaining(whole, "pipeline", tmp_path, float("inf")) == whole  # a life that never began
    assert remaining(whole, "pipeline", tmp_path, then) == whole | {"start": "publish"}
    assert remaining({"anew": True}, "convert", tmp_path, then + 20 * 60) == {"anew": False}
    assert remaining({"anew": True}, "evaluate", tmp_path, then + 20 * 60) == {"anew": True}
    nothing = {"start": "", "until": ""}
    assert remaining(nothing, "pipeline", tmp_path, then + 20 * 60) == nothing
