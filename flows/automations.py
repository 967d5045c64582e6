"""What Prefect does by itself when a run's process is gone, or a run has failed. `koda up` keeps these."""

from datetime import timedelta
from typing import Any

from flows.environment import HEARTBEAT_SECONDS, set_environment

ENDED = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
RESUMES = "resumes"  # the tag of deployments whose crashed runs are started again
CANCELS_WITHIN = 120.0  # seconds; a training that is told to stop saves, and Prefect kills it after 30
NOTICE = "koda-notice"  # the name of the block that says where to tell of failures
# A crashed run's own parameters, but for `start`: what that life has built is not built anew.
AGAIN = "{% set p = flow_run.parameters %}{{ (dict(p, start='') if 'start' in p else p) | tojson }}"


def wanted() -> list[Any]:
    """The automations, those that need a block only where there is one."""
    from prefect.automations import Automation
    from prefect.client.orchestration import get_client
    from prefect.events.actions import RunDeployment, SendNotification
    from prefect.events.schemas.automations import EventTrigger, Posture

    def trigger(tag: str, **terms: Any) -> EventTrigger:
        related: Any = {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{tag}"}
        return EventTrigger(
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related=related,
            for_each={"prefect.resource.id"},
            threshold=1,
            **terms,
        )

    def run(parameters: dict[str, Any], deployment: Any = None) -> RunDeployment:
        source: Any = "selected" if deployment else "inferred"
        return RunDeployment(source=source, deployment_id=deployment, parameters=parameters, job_variables=None)

    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("koda/check").id
    again = run({"__prefect_kind": "json", "value": {"__prefect_kind": "jinja", "template": AGAIN}})
    check = run({"flow_run": {"__prefect_kind": "jinja", "template": "{{ labels.prefect.resource.id }}"}}, deployment)
    found = [
        Automation(
            name="koda: start a crashed run again",
            description="It goes on from its last checkpoint. A run that failed is left to a person.",
            trigger=trigger(
                RESUMES, expect={"prefect.flow-run.Crashed"}, posture=Posture.Reactive, within=timedelta(0)
            ),
            actions=[again],
        ),
        Automation(
            name="koda: no sign of life",
            description="Has a run checked that beat once and then neither beats nor ends. It crashed if its process "
            "is gone, and its worker with it, for a worker that lives says so itself.",
            trigger=trigger(
                "koda",
                after={"prefect.flow-run.heartbeat"},
                expect={"prefect.flow-run.heartbeat", "prefect.flow-run.Cancelling", *ENDED},
                posture=Posture.Proactive,
                within=timedelta(seconds=3 * HEARTBEAT_SECONDS + 5),
            ),
            actions=[check],
        ),
        Automation(
            name="koda: cancelled without a worker",
            description="Has a run checked that was to be cancelled and has not ended. It would hold its place on.",
            trigger=trigger(
                "koda",
                after={"prefect.flow-run.Cancelling"},
                expect=ENDED,
                posture=Posture.Proactive,
                within=timedelta(seconds=CANCELS_WITHIN),
            ),
            actions=[check],
        ),
    ]
    if block := _notice():
        subject = "Koda: {{ flow_run.name }} failed"
        body = "{{ flow_run.state.message }}\n{{ flow_run|ui_url }}"
        found.append(
            Automation(
                name="koda: tell of a failure",
                description=f"Through the block {NOTICE!r}: a run that failed, a nightly evaluation that found less.",
                trigger=trigger(
                    "koda", expect={"prefect.flow-run.Failed"}, posture=Posture.Reactive, within=timedelta(0)
                ),
                actions=[SendNotification(block_document_id=block, subject=subject, body=body)],
            )
        )
    return found


def keep() -> None:
    """Create the automations, and bring those of an earlier start to what they are now."""
    from prefect.automations import Automation

    for automation in wanted():
        try:
            there: Automation = Automation.read(name=automation.name)  # type: ignore[assignment]  # typed as async
        except ValueError:
            automation.create()
            continue
        if _terms(there) != _terms(automation):  # else it is left alone: an update forgets the events that were seen
            automation.id = there.id
            automation.update()


def _notice() -> Any:
    """The notification block of that name, of whatever kind; None where nobody has made one."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        found = [block for block in client.read_block_documents() if block.name == NOTICE]
    return found[0].id if found else None


def _terms(automation: Any) -> dict[str, Any]:
    """What an automation says, without the numbers that the server gives it."""
    said = automation.model_dump(mode="json", include={"trigger", "actions", "description", "enabled"})
    said["trigger"] = {k: sorted(v) if isinstance(v, list) else v for k, v in said["trigger"].items() if k != "id"}
    return said


if __name__ == "__main__":
    set_environment(quiet=True)
    keep()
