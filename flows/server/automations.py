"""Prefect's automations: when to check a run that may be gone, and when to notify. `koda up` creates them."""

from datetime import timedelta
from typing import Any

from flows.environment import HEARTBEAT_SECONDS, set_environment
from flows.retry import RESUMES

ENDED = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
WAITS = {"prefect.flow-run.AwaitingRetry"}  # the cluster took its machine away, and will give it another
CANCELS_WITHIN = 120.0  # seconds; a training that is stopped saves, and Prefect kills it after 30
NOTICE = "koda-notice"  # the name of the notification block that failures are sent to
PREFIX = "koda: "  # of the names of all of these


def automations() -> list[Any]:
    """Koda's automations; the one that notifies only where its block exists."""
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
    ours = [
        Automation(
            name=f"{PREFIX}restart a crashed run",
            description="It goes on from its last checkpoint. A run that failed is left to a person.",
            trigger=trigger(
                RESUMES, expect={"prefect.flow-run.Crashed"}, posture=Posture.Reactive, within=timedelta(0)
            ),
            actions=[check],
        ),
        Automation(
            name=f"{PREFIX}no heartbeat",
            description="Has a run checked that beat once and then neither beats nor ends. It crashed if its process "
            "is gone, and its worker with it: a running worker would report it.",
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
            name=f"{PREFIX}cancelled without a worker",
            description="Has a run checked that was to be cancelled and has not ended, and so keeps its place.",
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
        ours.append(
            Automation(
                name=f"{PREFIX}notify of a failure",
                description=f"Through the block {NOTICE!r}: a run that failed, a nightly evaluation with a regression.",
                trigger=trigger(
                    "koda", expect={"prefect.flow-run.Failed"}, posture=Posture.Reactive, within=timedelta(0)
                ),
                actions=[SendNotification(block_document_id=blocks[0], subject=subject, body=body)],
            )
        )
    return ours


def sync() -> None:
    """Create the automations, update those of an earlier version, and delete those that no longer exist."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        existing = {old.name: old for old in client.read_automations() if old.name.startswith(PREFIX)}
        for automation in automations():
            old = existing.pop(automation.name, None)
            if old is None:
                automation.create()
            elif _terms(old) != _terms(automation):  # an update makes the server forget the events so far
                automation.id = old.id
                automation.update()
        for old in existing.values():
            client.delete_automation(old.id)


def _terms(automation: Any) -> dict[str, Any]:
    """The content of an automation, without the IDs that the server assigns."""
    terms = automation.model_dump(mode="json", include={"trigger", "actions", "description", "enabled"})
    terms["trigger"] = {k: sorted(v) if isinstance(v, list) else v for k, v in terms["trigger"].items() if k != "id"}
    return terms


if __name__ == "__main__":
    set_environment(quiet=True)
    sync()
