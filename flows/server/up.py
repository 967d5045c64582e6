"""`koda up` and `koda down`: a Prefect server, the work pool, the deployments and a worker on this machine."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from flows.environment import set_environment
from flows.server.health import responds
from flows.server.register import POOL, QUEUES
from flows.server.services import Service
from model.errors import KodaError, one_line
from model.files import is_locked, lock_file
from model.ports import LOOPBACK
from tasks.reports.artifacts import FILES
from tasks.runs.paths import root

PORT = 4200
SERVER_PATIENCE = 120.0  # seconds; a fresh database takes up to 30
WORKER_PATIENCE = 40.0  # to end its runs, in which a training saves


def up() -> None:
    """Start what is not running yet, and bring pool, deployments and automations to what they are in this version.

    A server that responds at PREFECT_API_URL, or at the usual port, is used as it is. Raises KodaError where
    a service does not start.
    """
    services = _services()
    if not Path("prefect.yaml").is_file():
        raise KodaError("`koda up` reads prefect.yaml: start it in the project's folder.")
    with _exclusive():
        _start(*services)


def _start(server: Service, files: Service, worker: Service) -> None:
    address = os.environ["PREFECT_API_URL"].removesuffix("/api")
    url = urllib.parse.urlsplit(address)
    port = url.port or PORT
    # Else any page in the user's browser could have the worker run a command.
    os.environ.setdefault("PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS", f"{address},http://localhost:{port}")
    if not _server_responds():
        if url.hostname != LOOPBACK:
            raise KodaError(
                f"no server responds at PREFECT_API_URL = {address}; a server is only started on {LOOPBACK}."
            )
        print("starting the Prefect server …", flush=True)
        _until(lambda: _server_responds() or not server.is_running(), SERVER_PATIENCE)  # it may be starting, or busy
        if not _server_responds():
            server.stop(15)
            server.start("prefect", "server", "start", "--host", LOOPBACK, "--port", str(port))
            _wait(_server_responds, server, SERVER_PATIENCE)
    address_file = files.folder / "files.url"
    if not files.is_running():
        address_file.unlink(missing_ok=True)
        files.start("flows.server.file_server", str(port + 1), str(address_file))
        _wait(lambda: address_file.is_file() and address_file.read_text() != "", files, 30)
    registered = subprocess.run(
        [sys.executable, "-m", "flows.server.register"], capture_output=True, text=True, check=False
    )
    if registered.returncode:
        raise KodaError((registered.stdout + registered.stderr).strip()[-2000:].removeprefix("koda: "))
    if not worker.is_running():
        os.environ[FILES] = address_file.read_text()
        worker.start("prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", "koda")
        _restart_killed_runs()
    print(f"Koda is up: {address} · start a run there, or with `prefect deployment run koda/pretrain`")
    print("`koda down` ends it; logs are in", server.folder)


def down(wait: bool) -> None:
    """End what `koda up` started here: running runs save, and the next `koda up` restarts them.

    `wait`: first let them finish; no new one starts meanwhile.
    """
    server, files, worker = _services()
    reachable = worker.is_running() and _server_responds()
    with _paused() if reachable else contextlib.nullcontext():
        if wait and reachable:
            _wait_for_runs()
        with _exclusive():
            if worker.is_running() and server.is_running() and _server_responds():
                _stop_runs(worker)
            ended = [one.name for one in (worker, files, server) if one.stop(WORKER_PATIENCE if one is worker else 15)]
    print(f"ended: {', '.join(ended)}" if ended else "nothing was up")
    for path in root().glob("*/.lock"):
        if is_locked(path):
            print(f"{path.parent} is still locked by {path.read_text().strip()}, which goes on by itself")
    if not server.is_running() and _server_responds():
        print(f"a server that `koda up` did not start responds at {os.environ['PREFECT_API_URL']}; it is left running")


def state() -> list[str]:
    """What is running and what is not, and what to do; nothing where `koda up` was not used here."""
    services = _services()
    try:
        if not any(one.lock.is_file() for one in services):
            return []
    except PermissionError:  # somebody else's
        return []
    running = {one.name: one.is_running() for one in services} | {"server": _server_responds()}
    if all(running.values()):
        return [f"up: {os.environ['PREFECT_API_URL'].removesuffix('/api')}"]
    missing = [name for name, up in running.items() if not up]
    return (
        [] if len(missing) == len(running) else [f"not running: {', '.join(missing)}; `koda up` starts what is missing"]
    )


def _services() -> tuple[Service, Service, Service]:
    set_environment(quiet=False)
    os.environ.setdefault("PREFECT_API_URL", f"http://{LOOPBACK}:{PORT}/api")
    folder = Path(os.environ["PREFECT_HOME"])
    return Service("server", folder), Service("files", folder), Service("worker", folder)


def _exclusive() -> IO[str]:
    """One command at a time starts and ends what is up here."""
    try:
        return lock_file(Path(os.environ["PREFECT_HOME"]) / "up.lock", "", 2 * SERVER_PATIENCE)
    except KodaError:
        raise KodaError("another `koda up` or `koda down` is at work here; wait for it, or end it.") from None


def _restart_killed_runs() -> None:
    """Restart at once what was killed together with the last worker, or with the machine; the server would wait for
    missing heartbeats."""
    from prefect.client.orchestration import get_client

    from flows.check import settle, was_killed

    try:
        with get_client(sync_client=True) as client:
            for run in _runs("RUNNING", "CANCELLING"):
                if was_killed(run.id):
                    print(settle(client, run.id), flush=True)
    except Exception as error:  # koda/check tries again, when it misses the heartbeats
        print(f"what was killed with the last worker is restarted later: {one_line(error)}")


def _stop_runs(worker: Service) -> None:
    """Have the runs save and end while the server can record it, so that the next `koda up` restarts them at once. The
    worker would only kill them, and they would count as running until their heartbeats were missed.
    """
    from prefect.client.orchestration import get_client

    from flows.check import settle, was_killed

    active = _runs("RUNNING", "PENDING")
    for pid in worker.children():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    mine: dict[str, Any] = {"id": {"any_": [run.id for run in active]}}
    _until(lambda: not worker.children() or not _runs("RUNNING", "PENDING", **mine), WORKER_PATIENCE)
    _until(lambda: not _runs("RUNNING", **mine), 5)  # the worker reports the last one, unless it is busy
    with get_client(sync_client=True) as client:
        for run in _runs("CRASHED", "RUNNING", **mine):
            try:
                if run.state.is_crashed() or was_killed(run.id):
                    settle(client, run.id)
            except Exception as error:  # koda/check tries again, once there is a worker
                print(f"{run.name}: {error}")


def _wait_for_runs() -> None:
    """Wait for the running runs to end."""
    printed = ""
    while active := _runs("RUNNING", "PENDING"):
        names = ", ".join(sorted(run.name for run in active))
        if names != printed:
            print(f"waiting for {names} …", flush=True)
            printed = names
        time.sleep(2)


@contextlib.contextmanager
def _paused() -> Iterator[None]:
    """No runs are started, but for checks of crashed ones; they are again if the block fails, by Ctrl-C for example."""
    try:
        _pause(True)  # inside: Ctrl-C may come while the last of the queues is being paused
        yield
    except BaseException:
        with contextlib.suppress(Exception):  # where the server has gone
            _pause(False)
        raise


def _pause(paused: bool) -> None:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        for name, limit in QUEUES.items():
            if limit is not None:
                queue = client.read_work_queue_by_name(name, work_pool_name=POOL)
                client.update_work_queue(queue.id, is_paused=paused)


def _runs(*states: str, **terms: Any) -> list[Any]:
    """The pool's runs in these states."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter

    terms["state"], named = {"type": {"any_": states}}, {"name": {"any_": [POOL]}}
    states_, pool = FlowRunFilter.model_validate(terms), WorkPoolFilter.model_validate(named)
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(flow_run_filter=states_, work_pool_filter=pool)


def _until(true: Callable[[], bool], patience: float) -> None:
    deadline = time.monotonic() + patience
    while not true() and time.monotonic() < deadline:
        time.sleep(0.5)


def _server_responds() -> bool:
    return responds(os.environ["PREFECT_API_URL"])


def _wait(ready: Callable[[], bool], service: Service, patience: float) -> None:
    _until(lambda: ready() or not service.is_running(), patience)
    if not ready():
        raise KodaError(f"the {service.name} did not start. The end of {service.log}:\n{service.log_tail()}")
