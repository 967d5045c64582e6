"""Start a crashed run again, so that it goes on from what stands; but not for ever."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.errors import KodaError
from model.training.protocol import lines
from tasks.run import LIVES, STAGES, WITHOUT_PROGRESS, folder_of, read_built

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

RESUMES = "resumes"  # the tag of deployments whose crashed runs are started again
AGAIN = "again"  # so the idempotency key of a next life begins; the ID of the life before it follows


def again(client: "SyncPrefectClient", crashed: "FlowRun") -> "FlowRun | None":
    """The next life of a crashed run, with its parameters and job variables; however often it is asked for, it is one.
    None where the run is of a kind that is not started again.

    A life that began counts itself (tasks/run.py). Raises KodaError where the last ones died before that: the code does
    not load, or the worker cannot start it.
    """
    if RESUMES not in crashed.tags or crashed.deployment_id is None:
        return None
    name, stage = crashed.parameters["name"], client.read_deployment(crashed.deployment_id).name
    lives = (life for life in lines(folder_of(name) / LIVES) if life["event"] == "begin")
    began = {str(life.get("flow_run")): float(life["time"]) for life in lives}
    if len(_unbegun(client, crashed, began)) == WITHOUT_PROGRESS:
        raise KodaError(
            f"{name} · {stage} crashed {WITHOUT_PROGRESS} times before it began, and is not started again. The log of "
            f"its last run, {crashed.name}, or the worker's says why."
        )
    since = began.get(str(crashed.id), float("inf"))
    return client.create_flow_run_from_deployment(
        crashed.deployment_id,
        parameters=remaining(crashed.parameters, stage, folder_of(name), since),
        job_variables=crashed.job_variables,
        idempotency_key=f"{AGAIN} {crashed.id} {crashed.run_count}",
    )


def _unbegun(client: "SyncPrefectClient", crashed: "FlowRun", began: dict[str, float]) -> list["FlowRun"]:
    """The run and the lives before it, back to one that began or that a person started, and no more than count."""
    from uuid import UUID

    found: list[FlowRun] = []
    while str(crashed.id) not in began and len(found) < WITHOUT_PROGRESS:
        found.append(crashed)
        kind, _, before = (crashed.idempotency_key or "").partition(" ")
        if kind != AGAIN:
            break
        crashed = client.read_flow_run(UUID(before.split()[0]))
    return found


def remaining(parameters: dict[str, Any], stage: str, folder: Path, since: float) -> dict[str, Any]:
    """A life's parameters for the next one: what it was to build anew and has built, `since` it began, now stands.

    `stage`: that of the deployment, for those of one stage.
    """
    found = filter(None, (read_built(folder, s) for s in STAGES))
    new = {built.stage for built in found if datetime.fromisoformat(built.finished).timestamp() + 1 > since}
    if start := parameters.get("start"):
        left = [s for s in STAGES[STAGES.index(start) :] if s not in new]
        return {**parameters, "start": left[0] if left else STAGES[-1]}
    if parameters.get("anew"):
        return {**parameters, "anew": stage not in new}
    return parameters
