"""The automations of `koda up`, on a real Prefect server."""

from collections.abc import Iterator
from typing import Any

import pytest
from prefect.automations import Automation
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient
from prefect.events.actions import DoNothing

from flows.server.automations import NOTICE, PREFIX, automations, sync

NAMES = {f"{PREFIX}restart a crashed run", f"{PREFIX}no heartbeat", f"{PREFIX}cancelled without a worker"}


@pytest.fixture(autouse=True)
def deployment(client: SyncPrefectClient) -> Iterator[str]:
    """The ID of `koda/check`, on a server without automations."""
    assert client.read_automations() == []
    flow = client.create_flow_from_name("koda")
    yield str(client.create_deployment(flow, "check"))
    for automation in client.read_automations():
        client.delete_automation(automation.id)


def stored(client: SyncPrefectClient) -> dict[str, dict[str, Any]]:
    """The automations on the server by name, with the time of their last update."""
    return {row["name"]: row for row in client.request("POST", "/automations/filter", json={}).json()}


def test_sync_creates_the_automations(client: SyncPrefectClient, deployment: str) -> None:
    sync()
    rows = stored(client)
    assert rows.keys() == NAMES
    for row in rows.values():
        (action,) = row["actions"]
        assert row["enabled"] and (action["type"], action["deployment_id"]) == ("run-deployment", deployment)
        assert action["parameters"]["flow_run"]["template"] == "{{ labels.prefect.resource.id }}"


def test_second_sync_changes_nothing(client: SyncPrefectClient) -> None:
    """An update would make the server forget the events that a proactive trigger waits after."""
    sync()
    before = stored(client)
    sync()
    assert stored(client) == before


@pytest.mark.parametrize("name", sorted(NAMES))
def test_sync_updates_an_automation_of_an_earlier_version(client: SyncPrefectClient, name: str) -> None:
    """Its description, its trigger and its actions; or one that somebody disabled. The others are left as they are."""
    sync()
    before = stored(client)
    for change in ({"description": "older"}, {"enabled": False}, {"actions": [DoNothing()]}):
        (old,) = client.read_automations_by_name(name)
        changed = Automation(**old.model_dump() | change)
        changed.update()
        sync()
        assert facts(stored(client)[name]) == facts(before[name]), change
    (old,) = client.read_automations_by_name(name)
    old.trigger.within *= 2
    old.trigger.expect = {"prefect.flow-run.Completed"}
    Automation(**old.model_dump()).update()
    sync()
    after = stored(client)
    assert facts(after.pop(name)) == facts(before.pop(name))
    assert after == before


def test_sync_deletes_what_is_no_more_and_leaves_those_of_others(client: SyncPrefectClient) -> None:
    sync()
    (ours, *_) = automations()
    for name in (f"{PREFIX}of an earlier version", "theirs"):
        Automation(name=name, trigger=ours.trigger, actions=[DoNothing()]).create()
    before = stored(client)
    sync()
    assert stored(client) == {name: row for name, row in before.items() if name in {*NAMES, "theirs"}}


def test_failures_are_sent_where_the_notification_block_exists(client: SyncPrefectClient) -> None:
    block = CustomWebhookNotificationBlock(name="hook", url="http://127.0.0.1:1").save(NOTICE)
    try:
        sync()
        (added,) = (row for name, row in stored(client).items() if name not in NAMES)
        assert added["trigger"]["expect"] == ["prefect.flow-run.Failed"]
        assert added["actions"][0]["block_document_id"] == str(block)
    finally:
        client.delete_block_document(block)
    sync()
    assert stored(client).keys() == NAMES


def facts(row: dict[str, Any]) -> dict[str, Any]:
    """An automation without the time of its update, the ID that its trigger has since then, and the order of sets."""
    trigger = {k: sorted(v) if isinstance(v, list) else v for k, v in row["trigger"].items() if k != "id"}
    return {**row, "trigger": trigger, "updated": ""}
