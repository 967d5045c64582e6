"""What a person does in a browser: Prefect's real pages and the report, in Debian's Chromium."""

import json
import re
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from playwright.sync_api import Browser, Locator, Page, Route, expect

from flows.config import RunConfig
from model.training.heartbeat import Heartbeat
from tests.browser import MARKS
from tests.flows.up import PROJECT, Up, await_, events, small

DEPLOYMENTS = yaml.safe_load((PROJECT / "prefect.yaml").read_text())["deployments"]
pytestmark = [*MARKS, pytest.mark.timeout(1200)]


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """An empty tab, which fails the test where anything in it requests something outside this machine."""
    requested: list[str] = []
    with browser.new_context(viewport={"width": 1280, "height": 1000}) as context:
        context.on("request", lambda request: requested.append(request.url))
        page = context.new_page()
        page.set_default_timeout(60_000)
        yield page
    hosts = {urlsplit(url.removeprefix("blob:")).hostname for url in requested}
    assert requested and hosts <= {"127.0.0.1", None}  # None: a file


def form(up: Up, page: Page, deployment: str) -> dict[str, Any]:
    """Open a deployment's form as a person does on its page; returns the deployment."""
    described = up.api(f"deployments/name/koda/{deployment}")
    page.goto(f"{up.address}/deployments/deployment/{described['id']}")  # the list of all has two pages
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    page.get_by_role("button", name="Submit").wait_for()
    return described


def entry(within: Page | Locator, title: str) -> Locator:
    """The field or section of a form under this title."""
    page = within.page if isinstance(within, Locator) else within
    headed = page.locator(
        ":scope > .p-label__header .schema-form-property__label", has_text=re.compile(f"^{title} \\(")
    )
    return within.locator(".schema-form-property").filter(has=headed)


def titled(key: str) -> str:
    return key.replace("_", " ").capitalize()


def test_run_is_begun_in_a_form_and_watched_to_its_end(up: Up, page: Page) -> None:
    """What was filled in is what the run gets, and nothing else; its page then shows how far it is, and the curve."""
    form(up, page, "pretrain")
    for section in ("tokenize", "model", "pretrain"):
        part = entry(page, titled(section))
        described = RunConfig.model_fields[section].description
        expect(part.locator(".schema-form-property__description").first).to_have_text(described)
        for key, of in RunConfig.model_fields[section].annotation.model_fields.items():
            described = " ".join(of.description.replace("`", "").split())
            shown = entry(part, titled(key)).locator(".schema-form-property__description").inner_text()
            assert " ".join(shown.split()).startswith(f"{described} Default "), key
    entry(page, "Name").locator("textarea").fill("by-hand")
    settings = small(60)
    for section, values in settings.items():
        for key, value in values.items():
            entry(entry(page, titled(section)), titled(key)).locator("input, textarea").fill(str(value))
    entry(page, "Isolate documents").locator(".p-select-button__control").press("ArrowDown")
    page.get_by_role("option", name="true").click()
    settings["pretrain"]["isolate_documents"] = True
    page.locator("input").first.fill("by-hand")
    page.get_by_role("button", name="Submit").click()
    page.get_by_role("link", name="by-hand").first.click()
    page.wait_for_url("**/runs/flow-run/*")
    assert run_of(up, page)["parameters"] == {"name": "by-hand", "preset": "", "rebuild": False, "settings": settings}
    expect(page.locator(".state-badge").first).to_have_text("Completed", timeout=300_000)
    page.get_by_text("Artifacts", exact=True).click()
    expect(page.get_by_text("by-hand-pretrain-curve").last).to_be_visible()
    for kind in ("progress", "curve"):
        (artifact,) = up.artifacts(f"by-hand-pretrain-{kind}")
        page.goto(f"{up.address}/artifacts/artifact/{artifact['latest_id']}")
        if kind == "progress":
            expect(page.get_by_text("Progress: 100%")).to_be_visible()
    picture = page.locator("img[src*='curve.png']")
    picture.wait_for()
    page.wait_for_function("picture => picture.naturalWidth > 300", arg=picture.element_handle())
    assert fits(page)


@pytest.mark.parametrize("deployment", [d["name"] for d in DEPLOYMENTS])
def test_form_that_nobody_filled_in_sends_nothing(up: Up, page: Page, deployment: str) -> None:
    """Its run has the deployment's own parameters: no switch or empty field overrides the run's settings."""

    def later(route: Route) -> None:
        run = json.loads(route.request.post_data or "")
        run["state"]["state_details"]["scheduled_time"] = "2999-01-01T00:00:00Z"
        route.continue_(post_data=json.dumps(run))

    page.route("**/create_flow_run", later)
    opened = form(up, page, deployment)
    for _ in range(10):
        with page.expect_response("**/create_flow_run") as answer:
            page.get_by_role("button", name="Submit").click()
        if answer.value.status != 503:  # on a busy machine, for a moment: SQLite is locked, and the page shows it
            break
    assert answer.value.status == 201
    sent = up.api(f"flow_runs/{answer.value.json()['id']}")["parameters"]
    if "settings" in sent:
        sent["settings"] = {section: values for section, values in sent["settings"].items() if values}
    assert sent == opened["parameters"]


def test_training_cancelled_by_the_button_saves_and_ends(up: Up, page: Page) -> None:
    up.pretrain("stopped", 100_000)
    training = up.folder / "runs/stopped/pretrain"
    await_(lambda: (Heartbeat.read(training) or {"step": 0})["step"] >= 30)
    page.goto(f"{up.address}/runs")
    page.get_by_role("link", name="stopped · pretrain").first.click()
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.get_by_role("button", name="Confirm").click()
    began = time.monotonic()
    await_(lambda: events(training, "preemption"), 30)
    saved = events(training, "preemption")[0]["step"]
    assert saved >= 30 and (training / f"checkpoints/{saved}/COMMIT.json").is_file()
    saving = time.monotonic() - began
    expect(page.locator(".state-badge").first).to_have_text("Cancelled", timeout=300_000)
    seconds = time.monotonic() - began
    past = up.api(f"flow_run_states/?flow_run_id={run_of(up, page)['id']}")
    states = {state["name"]: datetime.fromisoformat(state["timestamp"]) for state in past}
    loading = states["Running"] - states["Pending"]
    print(f"saved {saving:.1f} s after the button, cancelled after {seconds:.1f} s; to load the flow took {loading}")
    # Before Prefect shows it, it awaits the end of one process and loads the flow in another for its hooks: on a busy
    # machine, about as long as the run took to begin.
    assert seconds < max(30, 2 * loading.total_seconds())


def test_report_requests_no_other_file(up: Up, page: Page) -> None:
    """In light, in dark and on a phone: no other request, nothing on the console, no scrolling to the side."""
    up.pretrain("reported", 20)
    await_(lambda: [run["state_type"] for run in up.runs("reported")] == ["COMPLETED"])
    where = (up.folder / "runs/reported/report.html").as_uri()
    requested, console = [], []
    page.on("request", lambda request: requested.append(request.url))
    page.on("console", lambda message: console.append(message.text))
    page.on("pageerror", lambda error: console.append(str(error)))
    grounds = set()
    for scheme, width in (("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 844})
        page.goto(where)
        expect(page.locator("figure").first).to_be_visible()
        assert fits(page), (scheme, width)
        grounds.add((scheme, page.evaluate("getComputedStyle(document.body).backgroundColor")))
    assert len(grounds) == 2 and len({ground for _, ground in grounds}) == 2
    assert requested == [where] * 4 and console == []


def run_of(up: Up, page: Page) -> dict[str, Any]:
    """The run that a page is about."""
    return up.api(f"flow_runs/{urlsplit(page.url).path.rpartition('/')[2]}")


def fits(page: Page) -> bool:
    """Nothing has to be scrolled to the side for."""
    return page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
