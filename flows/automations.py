"""When Prefect has a run checked that may be gone, and tells of one that failed. `koda up` keeps these."""

from datetime import timedelta
from typing import Any

from flows.again import RESUMES
from flows.environment import HEARTBEAT_SECONDS, set_environment

ENDED = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
WAITS = {"prefect.flow-run.AwaitingRetry"}  # the cluster took its machine away, and will give it another
CANCELS_WITHIN = 120.0  # seconds; a training that is told to stop saves, and Prefect kills it after 30
NOTICE = "koda-notice"  # the name of the block that says where to tell of failures
NAMED = "koda: "  # so the names of all of these begin


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

    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("koda/check").id
        blocks = [block.id for block in client.read_block_documents() if block.name == NOTICE]  # of whatever kind
    which = {"flow_run": {"__prefect_kind": "jinja", "template": "{{ labels.prefect.resource.id }}"}}
    check = RunDeployment(source="selected", deployment_id=deployment, parameters=which, job_variables=None)
    found = [
        Automation(
            name=f"{NAMED}start a crashed run again",
            description="It goes on from its last checkpoint. A run that failed is left to a person.",
            trigger=trigger(
                RESUMES, expect={"prefect.flow-run.Crashed"}, posture=Posture.Reactive, within=timedelta(0)
            ),
            actions=[check],
        ),
        Automation(
            name=f"{NAMED}no sign of life",
            description="Has a run checked that beat once and then neither beats nor ends. It crashed if its process "
            "is gone, and its worker with it, for a worker that lives says so itself.",
            trigger=trigger(
                "koda",
                after={"prefect.flow-run.heartbeat"},
                expect={"prefect.flow-run.heartbeat", "prefect.flow-run.Cancelling", *ENDED, *WAITS},
                posture=Posture.Proactive,
                within=timedelta(seconds=3 * HEARTBEAT_SECONDS + 5),
            ),
            actions=[check],
        ),
        Automation(
            name=f"{NAMED}cancelled without a worker",
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
    if blocks:
        subject = "Koda: {{ flow_run.name }} failed"
        body = "{{ flow_run.state.message }}\n{{ flow_run|ui_url }}"
        found.append(
            Automation(
                name=f"{NAMED}tell of a failure",
                description=f"Through the block {NOTICE!r}: a run that failed, a nightly evaluation that found less.",
                trigger=trigger(
                    "koda", expect={"prefect.flow-run.Failed"}, posture=Posture.Reactive, within=timedelta(0)
                ),
                actions=[SendNotification(block_document_id=blocks[0], subject=subject, body=body)],
            )
        )
    return found


def keep() -> None:
    """Create the automations, bring those of an earlier start to what they are now, and remove what is no more."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        there = {old.name: old for old in client.read_automations() if old.name.startswith(NAMED)}
        for automation in wanted():
            old = there.pop(automation.name, None)
            if old is None:
                automation.create()
            elif _terms(old) != _terms(automation):  # else it is left: an update forgets the events that were seen
                automation.id = old.id
                automation.update()
        for old in there.values():
            client.delete_automation(old.id)


def _terms(automation: Any) -> dict[str, Any]:
    """What an automation says, without the numbers that the server gives it."""
    said = automation.model_dump(mode="json", include={"trigger", "actions", "description", "enabled"})
    said["trigger"] = {k: sorted(v) if isinstance(v, list) else v for k, v in said["trigger"].items() if k != "id"}
    return said


if __name__ == "__main__":
    set_environment(quiet=True)
    keep()
