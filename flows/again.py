"""Start a crashed run again, so that it goes on from what stands; but not for ever."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.errors import KodaError
from model.training.protocol import lines
from tasks.run import LIVES, RECORD, STAGES, WITHOUT_PROGRESS, folder_of

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

RESUMES = "resumes"  # the tag of deployments whose crashed runs are started again


def again(client: "SyncPrefectClient", crashed: "FlowRun") -> "FlowRun | None":
    """The next life of a crashed run, with its parameters and job variables; however often it is asked for, it is one.
    None where the run is of a kind that is not started again.

    A life that began counts itself (tasks/run.py). Raises KodaError where the last ones died before that: the code does
    not load, or the worker cannot start it.
    """
    if RESUMES not in crashed.tags or crashed.deployment_id is None:
        return None
    name, stage = crashed.parameters["name"], client.read_deployment(crashed.deployment_id).name
    began = {life.get("flow_run"): life["time"] for life in lines(folder_of(name) / LIVES) if life["event"] == "begin"}
    if str(crashed.id) not in began:
        last = [run for run in _last(client, crashed) if run.parameters["name"] == name][:WITHOUT_PROGRESS]
        if len(last) == WITHOUT_PROGRESS and all(_crashed(run) and str(run.id) not in began for run in last):
            raise KodaError(
                f"{name} · {stage} crashed {WITHOUT_PROGRESS} times before it began, and is not started again. The log "
                f"of its last run, {crashed.name}, or the worker's says why."
            )
    since = began.get(str(crashed.id), float("inf"))
    return client.create_flow_run_from_deployment(
        crashed.deployment_id,
        parameters=remaining(crashed.parameters, stage, folder_of(name), since),
        job_variables=crashed.job_variables,
        idempotency_key=f"again {crashed.id}",
    )


def remaining(parameters: dict[str, Any], stage: str, folder: Path, since: float) -> dict[str, Any]:
    """A life's parameters for the next one: what it was to build anew and has built, `since` it began, now stands.

    `stage`: that of the deployment, for those of one stage.
    """
    new = {s for s in STAGES if (folder / s / RECORD).is_file() and (folder / s / RECORD).stat().st_mtime > since}
    if start := parameters.get("start"):
        left = [s for s in STAGES[STAGES.index(start) :] if s not in new]
        return {**parameters, "start": left[0] if left else STAGES[-1]}
    if parameters.get("anew"):
        return {**parameters, "anew": stage not in new}
    return parameters


def _last(client: "SyncPrefectClient", crashed: "FlowRun") -> list["FlowRun"]:
    """The last runs of its deployment, the newest first."""
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.client.schemas.sorting import FlowRunSort

    wanted = FlowRunFilter.model_validate({"deployment_id": {"any_": [crashed.deployment_id]}})
    newest_first = FlowRunSort.EXPECTED_START_TIME_DESC
    return client.read_flow_runs(flow_run_filter=wanted, sort=newest_first, limit=50)


def _crashed(run: "FlowRun") -> bool:
    return run.state is not None and run.state.is_crashed()
