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

from model.files import held
from model.training.protocol import Heartbeat
from tests.flows.up import Up, await_, events, small
from tests.pipeline import KODA, command

pytestmark = pytest.mark.up


@pytest.mark.timeout(600)
def test_a_deployment_runs_on_server_and_worker(up: Up) -> None:
    given = ["--param", "name=deployed", "--param", f"settings={json.dumps(small(20))}"]
    assert "Completed" in up.prefect("deployment", "run", "koda/pretrain", *given, "--watch")
    status = subprocess.run([KODA, "status", "deployed", "--json"], cwd=up.folder, capture_output=True, text=True)
    found = json.loads(status.stdout)
    states = {stage["stage"]: stage["state"] for stage in found["stages"]}
    assert [states[s] for s in ("tokenize", "pretrain", "checkpoint", "sft")] == ["done"] * 3 + ["waiting"]
    assert sum(found["goodput"].values()) == pytest.approx(100, abs=0.1)


def test_nobody_else_reads_the_secrets_or_starts_a_run(up: Up) -> None:
    """Neither another user of the machine nor a page in the browser."""
    assert not stat.S_IMODE((up.folder / "runs/.prefect").stat().st_mode) & 0o077
    for origin, allowed in ((up.address, up.address), (f"http://localhost:{up.port}",) * 2, ("http://a.example", None)):
        asked = urllib.request.Request(f"{up.address}/api/health", headers={"Origin": origin})
        with urllib.request.urlopen(asked) as reply:
            assert reply.headers["access-control-allow-origin"] == allowed


@pytest.mark.timeout(600)
def test_a_cancelled_training_saves_and_the_next_run_takes_that_save(up: Up) -> None:
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
def test_a_cancel_whose_worker_dies_is_one_all_the_same(up: Up) -> None:
    """And not a crash, after which it would be started again."""
    up.pretrain("alone", 100_000)
    training = up.folder / "runs/alone/pretrain"
    await_step(training, 30)
    up.cancel("alone")
    os.kill(up.service("worker"), signal.SIGKILL)
    await_(lambda: not held(training.parent / ".lock"))
    assert events(training, "preemption")
    await_(lambda: up.runs("alone")[0]["state_type"] == "CANCELLED", 60)
    up.koda("up")
    assert len(up.runs("alone")) == 1


@pytest.mark.timeout(600)
def test_a_run_of_the_command_line_can_be_cancelled_too(up: Up) -> None:
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
    assert up.ask(f"flow_runs/{run['id']}")["state_type"] == "CANCELLED"


@pytest.mark.timeout(600)
def test_a_run_that_is_silent_is_gone_only_where_its_process_is(up: Up) -> None:
    """What the automations start says so: the server may have been away, and heard nobody."""
    up.pretrain("quiet", 100_000)
    await_step(up.folder / "runs/quiet/pretrain", 30)
    (works,) = up.runs("quiet")
    gone = [
        up.ask("flow_runs/", {"flow_id": works["flow_id"], "state": {"type": t}}) for t in ("RUNNING", "CANCELLING")
    ]
    for run in (works, *gone):
        up.start("check", flow_run=f"prefect.flow-run.{run['id']}")
    checks = {"deployments": {"name": {"any_": ["check"]}}, "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    await_(lambda: up.ask("flow_runs/count", checks) == 3)
    found = [up.ask(f"flow_runs/{run['id']}")["state_type"] for run in (works, *gone)]
    assert found == ["RUNNING", "CRASHED", "CANCELLED"]
    up.end("quiet")


@pytest.mark.timeout(600)
def test_a_second_up_starts_only_what_is_missing(up: Up) -> None:
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
def test_a_run_whose_process_is_killed_is_started_again(up: Up) -> None:
    """By the automation, with the same parameters; the page of the run then shows what has happened."""
    up.pretrain("killed", 3000)
    training = up.folder / "runs/killed/pretrain"
    await_step(training, 100)
    flow = int((up.folder / "runs/killed/.lock").read_text().split()[1])
    os.kill(flow, signal.SIGKILL)
    await_(lambda: sorted(run["state_type"] for run in up.runs("killed")) == ["COMPLETED", "CRASHED"])
    again, first = (run["parameters"] for run in up.runs("killed"))
    assert again == first and events(training, "resume")
    found = {artifact["key"]: artifact for artifact in up.artifacts("killed-pretrain")}
    assert {key.rpartition("-")[2] for key in found} == {"progress", "segments", "restarts", "curve"}
    assert found["killed-pretrain-progress"]["data"] == 100
    with urllib.request.urlopen(found["killed-pretrain-curve"]["data"]) as reply:
        assert reply.read().startswith(b"\x89PNG")
    with pytest.raises(urllib.error.HTTPError):  # where the secrets of the server lie
        urllib.request.urlopen((up.folder / "runs/.prefect/files.url").read_text() + "/.prefect/prefect.db")


@pytest.mark.timeout(900)
def test_a_run_that_loses_its_worker_saves_and_goes_on_under_the_next(up: Up) -> None:
    """A run does not go on without one: nobody could cancel it. The worker is killed once, and ended by `koda down`."""
    up.pretrain("orphan", 100_000)
    run, saved = up.folder / "runs/orphan", 0
    for number, end in enumerate((lambda: os.kill(up.service("worker"), signal.SIGKILL), lambda: up.koda("down")), 1):
        await_step(run / "pretrain", saved + 50)
        end()
        await_(lambda: not held(run / ".lock"))
        saved = events(run / "pretrain", "preemption")[-1]["step"]
        assert number == 1 or planned(up) == 1  # while no server is there that could plan it
        up.koda("up")
        assert await_resume(run / "pretrain", number) == saved
    assert sorted(life["state_type"] for life in up.runs("orphan")) == ["CRASHED", "CRASHED", "RUNNING"]
    up.end("orphan")


@pytest.mark.timeout(600)
def test_down_can_wait_for_what_goes_on_and_can_be_called_off(up: Up) -> None:
    up.pretrain("waited", 100_000)
    await_step(up.folder / "runs/waited/pretrain", 30)
    down = subprocess.Popen([KODA, "down", "--wait"], cwd=up.folder, env=up.environment, stderr=subprocess.DEVNULL)
    await_(lambda: paused(up) == {"gpu": True, "background": True, "checks": False, "default": False})
    down.send_signal(signal.SIGINT)
    assert down.wait(60) == 130
    assert not any(paused(up).values()) and up.runs("waited")[0]["state_type"] == "RUNNING"
    up.end("waited")


@pytest.mark.timeout(600)
def test_a_failure_is_told_where_the_notice_block_says(up: Up) -> None:
    heard: list[dict] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        make = (
            "from prefect.blocks.notifications import CustomWebhookNotificationBlock as Block\n"
            f"told = {{'subject': '{{{{subject}}}}', 'body': '{{{{body}}}}'}}\n"
            f"Block(name='hook', url='http://127.0.0.1:{server.server_port}', json_data=told).save('koda-notice')"
        )
        subprocess.run([sys.executable, "-c", make], env=up.environment, check=True)
        up.koda("up")
        up.prefect("deployment", "run", "koda/sft", "--param", "name=nobody")
        await_(lambda: bool(heard))
        server.shutdown()
    assert heard[0]["subject"] == "Koda: nobody · sft failed" and "there is no run 'nobody'" in heard[0]["body"]


def paused(up: Up) -> dict[str, bool]:
    return {queue["name"]: queue["is_paused"] for queue in up.ask("work_pools/koda/queues/filter", {})}


def planned(up: Up) -> int:
    """Next lives that wait, by the database of the server, which is down."""
    with sqlite3.connect(up.folder / "runs/.prefect/prefect.db") as database:
        asked = "select count(*) from flow_run where state_type = 'SCHEDULED' and idempotency_key like 'again %'"
        return database.execute(asked).fetchone()[0]


def await_step(training: Path, step: int) -> None:
    await_(lambda: (Heartbeat.read(training) or {"step": 0})["step"] > step)


def await_resume(training: Path, number: int) -> int:
    """The step at which the training goes on for so many-th time."""
    await_(lambda: len(events(training, "resume")) == number)
    return events(training, "resume")[-1]["step"]
