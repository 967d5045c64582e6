"""What is to be done about a run that Prefect hears nothing of, or that should have ended by now, or that crashed?

Silence proves nothing: the server was away and heard nobody, or the machine slept. But whoever works on a run holds a
lock in its folder, and the lock says for which of Prefect's runs.
"""

from typing import Annotated
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.states import Cancelled, Crashed, Pending

from flows.again import again
from flows.forms import field
from model.errors import KodaError
from model.files import held
from tasks.progress import say
from tasks.run import root

PREFIX = "prefect.flow-run."  # of a run's number, in Prefect's events


@flow(name="koda", flow_run_name="check {flow_run}", validate_parameters=False)
def check(flow_run: Annotated[str, field("Flow run")] = "") -> None:
    """Tell Prefect that a run is gone, where it is, and start one again that crashed; automations start this. One that
    works on is left alone.

    Args:
        flow_run: the run's ID.
    """
    try:
        number = UUID(flow_run.removeprefix(PREFIX))
    except ValueError:
        raise KodaError(f"flow_run = {flow_run!r}: the ID of a flow run, as its page shows it.") from None
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(number)
        state = run.state or Pending()
        if (state.is_running() or state.is_cancelling()) and not works(number):
            gone = Cancelled if state.is_cancelling() else Crashed
            client.set_flow_run_state(number, gone(message="Its process is gone."))
            run = client.read_flow_run(number)  # it may have ended well meanwhile
            state = run.state or Pending()
        if not state.is_crashed():
            say(f"{run.name} is {state.name}")
        elif next_life := again(client, run):
            say(f"{run.name} is started again, as {next_life.name}")


def works(number: UUID) -> bool:
    """Does a process of this run hold a lock?"""
    locks = [*root().glob("*/.lock"), *root().glob("*/nightly/.lock")]
    return any(held(lock) and str(number) in lock.read_text(encoding="utf-8") for lock in locks)
