"""What Prefect does by itself when a run's process is gone. `koda up` keeps these as they stand here.

That a crashed run is started again stands with each deployment, in prefect.yaml.
"""

from datetime import timedelta
from typing import Any

from flows.environment import HEARTBEAT_SECONDS, set_environment

NAME = "koda: no sign of life"
ENDED = tuple(f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed"))


def keep() -> None:
    """Create the automation, or bring one of an earlier start to what it is now.

    A run that beat once and then neither beats nor ends for three beats lost its process, and its worker with it: a
    worker that lives says so itself, and at once.
    """
    from prefect.automations import Automation
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import EventTrigger, Posture
    from prefect.states import StateType

    wanted = Automation(
        name=NAME,
        description="Marks a run as crashed whose process and worker are gone; its deployment then starts it again.",
        trigger=EventTrigger(
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related={"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.koda"},
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *ENDED},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=3 * HEARTBEAT_SECONDS + 5),
        ),
        actions=[ChangeFlowRunState(name=None, state=StateType.CRASHED, message="no sign of life", force=False)],
    )
    try:
        there: Automation = Automation.read(name=NAME)  # type: ignore[assignment]  # typed as async
    except ValueError:
        wanted.create()
        return
    if _terms(there) != _terms(wanted):  # else it is left alone: an update forgets the beats that were heard
        wanted.id = there.id
        wanted.update()


def _terms(automation: Any) -> dict[str, Any]:
    """What an automation says, without the numbers that the server gives it."""
    said = automation.model_dump(mode="json", include={"trigger", "actions", "description", "enabled"})
    said["trigger"] = {k: sorted(v) if isinstance(v, list) else v for k, v in said["trigger"].items() if k != "id"}
    return said


if __name__ == "__main__":
    set_environment(quiet=True)
    keep()
