"""How a run ends that is to be cancelled and has no worker, on a real Prefect server, in a process of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelling

EVERY = 0.5  # seconds between two looks of the run, in place of ten
# It waits where a training would run, and prints its ID once it does.
FLOW = """
import sys, time
import flows.cancel
from prefect import flow
from prefect.runtime import flow_run

flows.cancel.EVERY = float(sys.argv[1])

@flow
@flows.cancel.cancellable
def wait():
    print(flow_run.id, flush=True)
    time.sleep(300)

wait()
"""


@pytest.fixture
def start() -> Iterator[Callable[[float], tuple[subprocess.Popen, UUID]]]:
    """Start the flow, with so many seconds between two looks; it is killed at the end of the test."""
    started = []

    def start(every: float) -> tuple[subprocess.Popen, UUID]:
        command = [sys.executable, "-c", FLOW, str(every)]
        environment = {**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value()}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process, UUID(process.stdout.readline().strip())

    yield start
    for process in started:
        process.kill()
        process.communicate()


Start = Callable[[float], tuple[subprocess.Popen, UUID]]


def test_run_that_is_to_be_cancelled_ends_by_itself(client: SyncPrefectClient, start: Start) -> None:
    process, run = start(EVERY)
    client.set_flow_run_state(run, Cancelling())
    began = time.monotonic()
    process.wait(60)
    assert 2 * EVERY <= time.monotonic() - began < 30  # two looks, and on a busy machine what Prefect then does
    assert client.read_flow_run(run).state.is_cancelled()


def test_sigterm_before_the_second_look_cancels_a_run_that_is_to_be_cancelled(
    client: SyncPrefectClient, start: Start
) -> None:
    """It is the worker's; and where that is killed, the kernel's."""
    process, run = start(300)
    client.set_flow_run_state(run, Cancelling())
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    assert client.read_flow_run(run).state.is_cancelled()


def test_several_sigterms_cancel_like_one(client: SyncPrefectClient, start: Start) -> None:
    """The worker sends one, and the kernel another where the worker dies then."""
    process, run = start(300)
    client.set_flow_run_state(run, Cancelling())
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.02)
    assert client.read_flow_run(run).state.is_cancelled()


def test_run_that_ends_waits_for_a_busy_server(client: SyncPrefectClient, start: Start) -> None:
    """Its question gets no answer at first. It asks once more, and takes none for no only then."""
    process, run = start(300)
    client.set_flow_run_state(run, Cancelling())
    busy = SubprocessASGIServer(port=client.api_url.port).server_process
    busy.send_signal(signal.SIGSTOP)
    process.send_signal(signal.SIGTERM)
    time.sleep(6)  # longer than one question lasts
    busy.send_signal(signal.SIGCONT)
    process.wait(60)
    assert client.read_flow_run(run).state.is_cancelled()


def test_sigterm_alone_is_a_crash(client: SyncPrefectClient, start: Start) -> None:
    process, run = start(EVERY)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == -signal.SIGTERM
    assert client.read_flow_run(run).state.is_crashed()


def test_run_that_nobody_cancels_is_left_alone(client: SyncPrefectClient, start: Start) -> None:
    process, run = start(EVERY)
    time.sleep(6 * EVERY)
    assert process.poll() is None and client.read_flow_run(run).state.is_running()
