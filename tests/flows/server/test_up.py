"""`koda up` and its deployments, by their real commands: server, pool, automations and worker on this machine."""

import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from model.files import is_locked
from model.training.heartbeat import Heartbeat
from tests.flows.up import Up, await_, events, small
from tests.pipeline import KODA, command

pytestmark = pytest.mark.up


@pytest.mark.timeout(600)
def test_deployment_runs_on_server_and_worker(up: Up) -> None:
    parameters = ["--param", "name=deployed", "--param", f"settings={json.dumps(small(20))}"]
    assert "Completed" in up.prefect("deployment", "run", "koda/pretrain", *parameters, "--watch")
    printed = subprocess.run([KODA, "status", "deployed", "--json"], cwd=up.folder, capture_output=True, text=True)
    status = json.loads(printed.stdout)
    states = {stage["stage"]: stage["state"] for stage in status["stages"]}
    assert [states[s] for s in ("tokenize", "pretrain", "checkpoint", "sft")] == ["done"] * 3 + ["waiting"]
    assert sum(status["goodput"].values()) == pytest.approx(100, abs=0.1)


def test_secrets_and_api_are_closed_to_other_users_and_pages(up: Up) -> None:
    """Neither another user of the machine nor a page in the browser."""
    assert not stat.S_IMODE((up.folder / "runs/.prefect").stat().st_mode) & 0o077
    for origin, allowed in ((up.address, up.address), (f"http://localhost:{up.port}",) * 2, ("http://a.example", None)):
        request = urllib.request.Request(f"{up.address}/api/health", headers={"Origin": origin})
        with urllib.request.urlopen(request) as reply:
            assert reply.headers["access-control-allow-origin"] == allowed


@pytest.mark.timeout(600)
def test_cancelled_training_saves_and_the_next_run_resumes_from_that_save(up: Up) -> None:
    up.pretrain("cancelled", 100_000)
    training = up.folder / "runs/cancelled/pretrain"
    deadline = time.monotonic() + 120
    while not (beat := Heartbeat.read(training)) or beat["step"] < 30:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    up.cancel("cancelled")
    deadline = time.monotonic() + 60
    while up.runs("cancelled")[0]["state_type"] != "CANCELLED" or not events(training, "preemption"):
        assert time.monotonic() < deadline, up.runs("cancelled")
        time.sleep(0.5)
    saved = events(training, "preemption")[0]["step"]
    assert saved >= beat["step"] and (training / f"checkpoints/{saved}/COMMIT.json").is_file()
    up.pretrain("cancelled", 100_000)
    while not (resumed := events(training, "resume")):
        assert time.monotonic() < deadline + 60
        time.sleep(0.2)
    assert resumed[0]["step"] == saved
    up.end("cancelled")


@pytest.mark.timeout(600)
def test_run_is_cancelled_although_its_worker_dies(up: Up) -> None:
    """And not crashed: it would be restarted."""
    up.pretrain("alone", 100_000)
    training = up.folder / "runs/alone/pretrain"
    await_step(training, 30)
    up.cancel("alone")
    os.kill(up.service("worker"), signal.SIGKILL)
    await_(lambda: not is_locked(training.parent / ".lock"))
    assert events(training, "preemption")
    await_(lambda: up.runs("alone")[0]["state_type"] == "CANCELLED", 60)
    up.koda("up")
    assert len(up.runs("alone")) == 1


@pytest.mark.timeout(600)
def test_run_of_the_command_line_can_be_cancelled(up: Up) -> None:
    """No worker watches it, as none watches a run any more that has gone through an outage of the server."""
    changes = {"pretrain.steps": "100_000", "pretrain.segments": "1"}
    log = up.folder / "typed.log"
    with log.open("w") as output:
        typed = subprocess.Popen(
            command("typed", **changes), cwd=up.folder, env=up.environment, stdout=output, stderr=output
        )
    training = up.folder / "runs/typed/pretrain"
    await_step(training, 30)
    (run,) = up.runs("typed")
    up.prefect("flow-run", "cancel", run["id"])
    assert typed.wait(120) == 1 and "saved" in log.read_text().splitlines()[-1]
    assert events(training, "preemption")
    assert up.api(f"flow_runs/{run['id']}")["state_type"] == "CANCELLED"


@pytest.mark.timeout(600)
def test_run_without_heartbeat_is_crashed_only_if_its_process_has_ended(up: Up) -> None:
    """`koda/check`, which the automations start, decides it: the server may have been down, and seen no heartbeat."""
    up.pretrain("quiet", 100_000)
    await_step(up.folder / "runs/quiet/pretrain", 30)
    (running,) = up.runs("quiet")
    ended = [
        up.api("flow_runs/", {"flow_id": running["flow_id"], "state": {"type": t}}) for t in ("RUNNING", "CANCELLING")
    ]
    for run in (running, *ended):
        up.start("check", flow_run=f"prefect.flow-run.{run['id']}")
    checks = {"deployments": {"name": {"any_": ["check"]}}, "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    await_(lambda: up.api("flow_runs/count", checks) == 3)
    states = [up.api(f"flow_runs/{run['id']}")["state_type"] for run in (running, *ended)]
    assert states == ["RUNNING", "CRASHED", "CANCELLED"]
    up.end("quiet")


@pytest.mark.timeout(600)
def test_second_up_starts_only_what_is_missing(up: Up) -> None:
    services = ("server", "files", "worker")
    before = {name: up.service(name) for name in services}
    for killed in (None, *services):
        if killed:
            os.kill(up.service(killed), signal.SIGKILL)
            assert f"not running: {killed}; `koda up` starts what is missing" in up.koda("status", "deployed")
        up.koda("up")
        after = {name: up.service(name) for name in services}
        assert {name for name in services if after[name] != before[name]} == ({killed} if killed else set())
        before = after


@pytest.mark.timeout(600)
def test_run_whose_process_is_killed_is_restarted(up: Up) -> None:
    """By the automation, with the same parameters; the page of the run then shows what happened."""
    up.pretrain("killed", 3000)
    training = up.folder / "runs/killed/pretrain"
    await_step(training, 100)
    flow = int((up.folder / "runs/killed/.lock").read_text().split()[1])
    os.kill(flow, signal.SIGKILL)
    await_(lambda: sorted(run["state_type"] for run in up.runs("killed")) == ["COMPLETED", "CRASHED"])
    retry, first = (run["parameters"] for run in up.runs("killed"))
    assert retry == first and events(training, "resume")
    artifacts = {artifact["key"]: artifact for artifact in up.artifacts("killed-pretrain")}
    assert {key.rpartition("-")[2] for key in artifacts} == {"progress", "segments", "restarts", "curve"}
    assert artifacts["killed-pretrain-progress"]["data"] == 100
    with urllib.request.urlopen(artifacts["killed-pretrain-curve"]["data"]) as reply:
        assert reply.read().startswith(b"\x89PNG")
    with pytest.raises(urllib.error.HTTPError):  # where the secrets of the server lie
        urllib.request.urlopen((up.folder / "runs/.prefect/files.url").read_text() + "/.prefect/prefect.db")


@pytest.mark.timeout(900)
def test_run_that_loses_its_worker_saves_and_resumes_under_the_next(up: Up) -> None:
    """Without one nobody could cancel it. The worker is killed once, and ended by `koda down`."""
    up.pretrain("orphan", 100_000)
    run, saved = up.folder / "runs/orphan", 0
    for number, end in enumerate((lambda: os.kill(up.service("worker"), signal.SIGKILL), lambda: up.koda("down")), 1):
        await_step(run / "pretrain", saved + 50)
        printed = end()
        await_(lambda: not is_locked(run / ".lock"))
        saved = events(run / "pretrain", "preemption")[-1]["step"]
        assert number == 1 or scheduled_retries(up) == 1, printed  # no server runs that could schedule one now
        up.koda("up")
        assert await_resume(run / "pretrain", number) == saved
    assert sorted(attempt["state_type"] for attempt in up.runs("orphan")) == ["CRASHED", "CRASHED", "RUNNING"]
    up.end("orphan")


@pytest.mark.timeout(600)
def test_run_that_is_killed_with_its_worker_is_restarted_by_the_next_up_at_once(up: Up) -> None:
    """As after the power failed, with a server of its own: not after three missed heartbeats."""
    up.pretrain("powerless", 100_000)
    training = up.folder / "runs/powerless/pretrain"
    await_step(training, 50)
    flow, trainer = int((training.parent / ".lock").read_text().split()[1]), Heartbeat.read(training)["pid"]
    for pid in (up.service("worker"), flow, trainer):
        os.kill(pid, signal.SIGKILL)
    await_(lambda: not Path(f"/proc/{flow}").exists())
    assert "is restarted, as" in up.koda("up")
    assert await_resume(training, 1) > 0
    assert sorted(attempt["state_type"] for attempt in up.runs("powerless")) == ["CRASHED", "RUNNING"]
    assert "is restarted" not in up.koda("up")  # and the one that goes on is left alone
    up.end("powerless")


@pytest.mark.timeout(600)
def test_down_waits_for_running_runs_and_can_be_interrupted(up: Up) -> None:
    up.pretrain("waited", 100_000)
    await_step(up.folder / "runs/waited/pretrain", 30)
    down = subprocess.Popen([KODA, "down", "--wait"], cwd=up.folder, env=up.environment, stderr=subprocess.DEVNULL)
    await_(lambda: paused(up) == {"gpu": True, "background": True, "checks": False, "default": False})
    down.send_signal(signal.SIGINT)
    assert down.wait(300) == 130
    assert not any(paused(up).values()) and up.runs("waited")[0]["state_type"] == "RUNNING"
    up.end("waited")


@pytest.mark.timeout(600)
def test_failure_is_sent_to_the_notification_block(up: Up) -> None:
    messages: list[dict] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            messages.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        create = (
            "from prefect.blocks.notifications import CustomWebhookNotificationBlock as Block\n"
            f"message = {{'subject': '{{{{subject}}}}', 'body': '{{{{body}}}}'}}\n"
            f"Block(name='hook', url='http://127.0.0.1:{server.server_port}', json_data=message).save('koda-notice')"
        )
        subprocess.run([sys.executable, "-c", create], env=up.environment, check=True)
        up.koda("up")
        up.prefect("deployment", "run", "koda/sft", "--param", "name=nobody")
        await_(lambda: bool(messages))
        server.shutdown()
    assert messages[0]["subject"] == "Koda: nobody · sft failed" and "there is no run 'nobody'" in messages[0]["body"]


def paused(up: Up) -> dict[str, bool]:
    return {queue["name"]: queue["is_paused"] for queue in up.api("work_pools/koda/queues/filter", {})}


def scheduled_retries(up: Up) -> int:
    """Retries that wait for a worker, by the database of the server, which is down."""
    with sqlite3.connect(up.folder / "runs/.prefect/prefect.db") as database:
        query = "select count(*) from flow_run where state_type = 'SCHEDULED' and idempotency_key like 'retry %'"
        return database.execute(query).fetchone()[0]


def await_step(training: Path, step: int) -> None:
    await_(lambda: (Heartbeat.read(training) or {"step": 0})["step"] > step)


def await_resume(training: Path, number: int) -> int:
    """The step of the training's resume of this number, counted from 1."""
    await_(lambda: len(events(training, "resume")) == number)
    return events(training, "resume")[-1]["step"]
