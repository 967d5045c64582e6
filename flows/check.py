"""Check a run that has no heartbeat, that should have ended by now, or that crashed.

A missing heartbeat proves nothing: the server was down, or the machine slept. But the process that works on a run has
locked its folder, and the lock file names Prefect's run.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.states import Cancelled, Crashed, Pending

from flows.forms import field
from flows.retry import schedule_retry
from model.errors import KodaError
from model.files import is_locked, owner_is_gone
from tasks.progress import log_line
from tasks.runs.paths import root

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

PREFIX = "prefect.flow-run."  # of a run's number, in Prefect's events


@flow(name="koda", flow_run_name="check {flow_run}", validate_parameters=False)
def check(flow_run: Annotated[str, field("Flow run")] = "") -> None:
    """Mark a run as crashed where its process is gone, and restart one that crashed; automations start this. One that
    is running is left alone.

    Args:
        flow_run: the run's ID.
    """
    try:
        number = UUID(flow_run.removeprefix(PREFIX))
    except ValueError:
        raise KodaError(f"flow_run = {flow_run!r}: the ID of a flow run, as its page shows it.") from None
    with get_client(sync_client=True) as client:
        log_line(settle(client, number))


def settle(client: "SyncPrefectClient", number: UUID) -> str:
    """Do for one run what `check` is for; returns what became of it, as a line."""
    run = client.read_flow_run(number)
    state = run.state or Pending()
    if (state.is_running() or state.is_cancelling()) and not is_running(number):
        gone = Cancelled if state.is_cancelling() else Crashed
        client.set_flow_run_state(number, gone(message="Its process is gone."))
        run = client.read_flow_run(number)  # it may have ended well meanwhile
        state = run.state or Pending()
    if state.is_crashed() and (retry := schedule_retry(client, run)):
        return f"{run.name} is restarted, as {retry.name}"
    return f"{run.name} is {state.name}"


def is_running(number: UUID) -> bool:
    """Has a process of this run locked a folder?"""
    return any(is_locked(lock) for lock in _locks(number))


def was_killed(number: UUID) -> bool:
    """Did a process of this machine, which no longer exists, work on this run, and nothing since?

    A run that ends well unlocks its folder a moment before its process ends: it is left alone until then.
    """
    locks = _locks(number)
    return bool(locks) and all(owner_is_gone(lock) for lock in locks)


def _locks(number: UUID) -> list[Path]:
    """The lock files that a process of this run was the last to lock."""
    locks = [*root().glob("*/.lock"), *root().glob("*/nightly/.lock")]
    return [lock for lock in locks if str(number) in lock.read_text(encoding="utf-8")]
