"""Restart a crashed run, so that it goes on from what is done; but not for ever."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.errors import KodaError
from tasks.runs.attempts import Attempts
from tasks.runs.paths import STAGES, folder_of
from tasks.runs.record import read_built
from tasks.runs.run import ATTEMPTS

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

RESUMES = "resumes"  # the tag of deployments whose crashed runs are restarted


def schedule_retry(client: "SyncPrefectClient", crashed: "FlowRun") -> "FlowRun | None":
    """A new run in place of a crashed one, with its parameters and job variables; it is one run however often this is
    called. None where the run is of a kind that is not restarted.

    An attempt that began counts itself (tasks/runs/run.py). Raises KodaError where the last runs crashed before that:
    the code does not load, or the worker cannot start it.
    """
    if RESUMES not in crashed.tags or crashed.deployment_id is None:
        return None
    name, stage = crashed.parameters["name"], client.read_deployment(crashed.deployment_id).name
    folder = folder_of(name)
    attempts = Attempts(folder / ATTEMPTS)
    if (count := attempts.never_began(str(crashed.id))) >= attempts.limit:
        raise KodaError(
            f"{name} · {stage} crashed {count} times before it began, and is not restarted. The log of its last run, "
            f"{crashed.name}, or the worker's has the cause."
        )
    since = attempts.began().get(str(crashed.id), float("inf"))
    retry = client.create_flow_run_from_deployment(
        crashed.deployment_id,
        parameters=remaining(crashed.parameters, stage, folder, since),
        job_variables=crashed.job_variables,
        idempotency_key=f"retry {crashed.id} {crashed.run_count}",
    )
    folder.mkdir(parents=True, exist_ok=True, mode=0o750)  # a run that never began has none
    attempts.schedule(flow_run=str(retry.id), after=str(crashed.id))
    return retry


def remaining(parameters: dict[str, Any], stage: str, folder: Path, since: float) -> dict[str, Any]:
    """An attempt's parameters for the next one: what it was to rebuild and has rebuilt, `since` it began, is kept.

    `stage`: that of the deployment, for those of one stage.
    """
    results = filter(None, (read_built(folder, s) for s in STAGES))
    new = {built.stage for built in results if datetime.fromisoformat(built.finished).timestamp() + 1 > since}
    if start := parameters.get("start"):
        left = [s for s in STAGES[STAGES.index(start) :] if s not in new]
        return {**parameters, "start": left[0] if left else STAGES[-1]}
    if parameters.get("rebuild"):
        return {**parameters, "rebuild": stage not in new}
    return parameters
