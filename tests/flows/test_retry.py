"""Which crashed runs are restarted, how often, and with which parameters, on a real Prefect server."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.states import Crashed, Running

from flows.retry import RESUMES, remaining, schedule_retry
from model.errors import KodaError
from model.figures import ConvertFigures, EvaluateFigures, PublishFigures
from model.files import append_line, write_json
from tasks.runs.attempts import LIMIT
from tasks.runs.run import ATTEMPTS


def crashed(client: SyncPrefectClient, name: str, tag: str = RESUMES, run: FlowRun | None = None) -> FlowRun:
    """A crashed run of `koda/sft`; `run`: that one, which was there already."""
    if run is None:
        flow = client.create_flow_from_name("koda")
        deployment = client.create_deployment(flow, f"sft-{tag}", tags=[tag])
        run = client.create_flow_run_from_deployment(
            deployment, parameters={"name": name, "rebuild": True}, job_variables={"gpus": 2}
        )
    client.set_flow_run_state(run.id, Crashed(), force=True)
    return client.read_flow_run(run.id)


def test_crashed_run_is_retried_once_with_its_parameters(client: SyncPrefectClient) -> None:
    run = crashed(client, "once")
    first, second = schedule_retry(client, run), schedule_retry(client, run)
    assert first is not None and second is not None and first.id == second.id != run.id
    assert (first.parameters, first.job_variables) == (run.parameters, {"gpus": 2})
    assert schedule_retry(client, crashed(client, "once", "koda")) is None


def test_only_runs_that_never_begin_are_given_up(client: SyncPrefectClient, tmp_path: Path) -> None:
    run = crashed(client, "never")
    for _ in range(LIMIT - 1):
        run = crashed(client, "never", run=schedule_retry(client, run))
    with pytest.raises(KodaError, match=f"crashed {LIMIT} times before it began"):
        schedule_retry(client, run)
    append_line(tmp_path / "never" / ATTEMPTS, {"time": 1, "event": "attempt", "progress": [], "flow_run": str(run.id)})
    assert schedule_retry(client, run) is not None


def test_run_that_a_person_starts_again_has_the_full_number_of_attempts(client: SyncPrefectClient) -> None:
    run = crashed(client, "fixed")
    for _ in range(LIMIT - 1):
        run = crashed(client, "fixed", run=schedule_retry(client, run))
    assert schedule_retry(client, crashed(client, "fixed")) is not None


def test_run_that_a_person_retried_is_retried_after_its_next_crash(client: SyncPrefectClient) -> None:
    """The retry of its first crash ended long ago."""
    run = crashed(client, "retried")
    first = schedule_retry(client, run)
    client.set_flow_run_state(run.id, Running(), force=True)
    assert schedule_retry(client, crashed(client, "retried", run=run)).id != first.id


def test_retry_keeps_what_the_attempt_before_it_rebuilt(tmp_path: Path) -> None:
    exports = ConvertFigures(exports=0, max_kl_divergence=0, stopped=0, parity={})
    scores = EvaluateFigures(
        bits_per_byte=0,
        tasks={},
        bits_per_byte_final=0,
        bits_per_byte_by_source={},
        xz_bits_per_byte=0,
        ratio_to_xz=0,
        heldout_bytes=0,
        tasks_above_chance=0,
        samples=[],
    )
    published = PublishFigures(where="", files=0, bytes=0, commits={})
    for stage, minute, figures in (("convert", 30, exports), ("evaluate", 10, scores), ("publish", 10, published)):
        record = {"key": "", "figures": figures, "finished": f"2026-01-01T00:{minute}:00Z"}
        write_json(tmp_path / stage / "stage.json", record)
    then = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    whole = {"start": "convert", "until": "", "name": "x"}
    assert remaining(whole, "pipeline", tmp_path, then + 20 * 60) == whole | {"start": "evaluate"}
    assert remaining(whole, "pipeline", tmp_path, then + 40 * 60) == whole
    assert remaining(whole, "pipeline", tmp_path, float("inf")) == whole  # an attempt that never began
    assert remaining(whole, "pipeline", tmp_path, then) == whole | {"start": "publish"}
    assert remaining({"rebuild": True}, "convert", tmp_path, then + 20 * 60) == {"rebuild": False}
    assert remaining({"rebuild": True}, "evaluate", tmp_path, then + 20 * 60) == {"rebuild": True}
    nothing = {"start": "", "until": ""}
    assert remaining(nothing, "pipeline", tmp_path, then + 20 * 60) == nothing
