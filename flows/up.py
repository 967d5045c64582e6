"""`koda up` and `koda down`: a Prefect server, the work pool, the deployments and a worker on this machine."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from flows.environment import set_environment
from flows.files import LOOPBACK
from flows.register import POOL, QUEUES
from flows.services import Service
from model.errors import KodaError
from model.files import held, hold
from tasks.run import FILES, root

PORT = 4200
SERVER_PATIENCE = 120.0  # seconds; a fresh database takes up to 30
WORKER_PATIENCE = 40.0  # to end its runs, in which a training saves


def up() -> None:
    """Start what is not there yet, and bring pool, deployments and automations to what they are in this version.

    A server that answers at PREFECT_API_URL, or at the usual port, is used and left as it is. Raises KodaError where
    something does not start.
    """
    services = _services()
    if not Path("prefect.yaml").is_file():
        raise KodaError("`koda up` reads prefect.yaml: start it in the project's folder.")
    with _alone():
        _start(*services)


def _start(server: Service, files: Service, worker: Service) -> None:
    address = os.environ["PREFECT_API_URL"].removesuffix("/api")
    asked = urllib.parse.urlsplit(address)
    port = asked.port or PORT
    # Else any page that the user looks at could have the worker run a command.
    os.environ.setdefault("PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS", f"{address},http://localhost:{port}")
    if not _answers():
        if asked.hostname != LOOPBACK:
            raise KodaError(f"nothing answers at PREFECT_API_URL = {address}; a server is only started on {LOOPBACK}.")
        print("starting the Prefect server …", flush=True)
        _until(lambda: _answers() or not server.lives(), SERVER_PATIENCE)  # one that is starting, or busy
        if not _answers():
            server.stop(15)
            server.start("prefect", "server", "start", "--host", LOOPBACK, "--port", str(port))
            _wait(_answers, server, SERVER_PATIENCE)
    told = files.folder / "files.url"
    if not files.lives():
        told.unlink(missing_ok=True)
        files.start("flows.files", str(port + 1), str(told))
        _wait(lambda: told.is_file() and told.read_text() != "", files, 30)
    registered = subprocess.run([sys.executable, "-m", "flows.register"], capture_output=True, text=True, check=False)
    if registered.returncode:
        raise KodaError((registered.stdout + registered.stderr).strip()[-2000:].removeprefix("koda: "))
    if not worker.lives():
        os.environ[FILES] = told.read_text()
        worker.start("prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", "koda")
    print(f"Koda is up: {address} · start a run there, or with `prefect deployment run koda/pretrain`")
    print("`koda down` ends it; logs are in", server.folder)


def down(wait: bool) -> None:
    """End what `koda up` started here: runs that go on save and are started again by the next `koda up`.

    `wait`: first let them finish; no new one is begun meanwhile.
    """
    server, files, worker = _services()
    asked = worker.lives() and _answers()
    with _paused() if asked else contextlib.nullcontext():
        if wait and asked:
            _finish()
        with _alone():
            if worker.lives() and server.lives() and _answers():
                _save(worker)
            ended = [one.name for one in (worker, files, server) if one.stop(WORKER_PATIENCE if one is worker else 15)]
    print(f"ended: {', '.join(ended)}" if ended else "nothing was up")
    for path in root().glob("*/.lock"):
        if held(path):
            print(f"{path.parent} is still being worked on by {path.read_text().strip()}, which goes on by itself")
    if not server.lives() and _answers():
        print(f"a server that `koda up` did not start answers at {os.environ['PREFECT_API_URL']}; it is left alone")


def state() -> list[str]:
    """What is up and what is not, with what to do about it; nothing where `koda up` was not used here."""
    services = _services()
    try:
        if not any(one.lock.is_file() for one in services):
            return []
    except PermissionError:  # somebody else's
        return []
    lives = {one.name: one.lives() for one in services} | {"server": _answers()}
    if all(lives.values()):
        return [f"up: {os.environ['PREFECT_API_URL'].removesuffix('/api')}"]
    missing = [name for name, there in lives.items() if not there]
    return (
        [] if len(missing) == len(lives) else [f"not running: {', '.join(missing)}; `koda up` starts what is missing"]
    )


def _services() -> tuple[Service, Service, Service]:
    set_environment(quiet=False)
    os.environ.setdefault("PREFECT_API_URL", f"http://{LOOPBACK}:{PORT}/api")
    folder = Path(os.environ["PREFECT_HOME"])
    return Service("server", folder), Service("files", folder), Service("worker", folder)


def _alone() -> IO[str]:
    """One command at a time starts and ends what is up here."""
    try:
        return hold(Path(os.environ["PREFECT_HOME"]) / "up.lock", "", 2 * SERVER_PATIENCE)
    except KodaError:
        raise KodaError("another `koda up` or `koda down` is at work here; wait for it, or end it.") from None


def _save(worker: Service) -> None:
    """Have the runs save and leave while the server is there to hear of it, so that the next `koda up` starts them
    again at once. The worker would only kill them, and until they were missed they would count as running.
    """
    from prefect.client.orchestration import get_client

    from flows.again import again

    going = _runs("RUNNING", "PENDING")
    for pid in worker.children():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    mine: dict[str, Any] = {"id": {"any_": [run.id for run in going]}}
    _until(lambda: not worker.children() or not _runs("RUNNING", "PENDING", **mine), WORKER_PATIENCE)
    _until(lambda: not _runs("RUNNING", **mine), 5)  # the last words of a process that has gone
    with get_client(sync_client=True) as client:
        for crashed in _runs("CRASHED", **mine):
            try:
                again(client, crashed)
            except Exception as error:  # koda/check tries again, once there is a worker
                print(f"{crashed.name}: {error}")


def _finish() -> None:
    """Let the runs that go on come to their end."""
    told = ""
    while going := _runs("RUNNING", "PENDING"):
        names = ", ".join(sorted(run.name for run in going))
        if names != told:
            print(f"waiting for {names} …", flush=True)
            told = names
        time.sleep(2)


@contextlib.contextmanager
def _paused() -> Iterator[None]:
    """From now on no runs are given out, but for checks of those that died; again if the block fails, on Ctrl-C say."""
    _pause(True)
    try:
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
    wanted, mine = FlowRunFilter.model_validate(terms), WorkPoolFilter.model_validate(named)
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(flow_run_filter=wanted, work_pool_filter=mine)


def _until(true: Callable[[], bool], patience: float) -> None:
    deadline = time.monotonic() + patience
    while not true() and time.monotonic() < deadline:
        time.sleep(0.5)


def _answers() -> bool:
    try:
        with urllib.request.urlopen(f"{os.environ['PREFECT_API_URL']}/health", timeout=2) as reply:
            return json.load(reply) is True
    except (OSError, ValueError, urllib.error.URLError):
        return False


def _wait(ready: Callable[[], bool], service: Service, patience: float) -> None:
    _until(lambda: ready() or not service.lives(), patience)
    if not ready():
        raise KodaError(f"the {service.name} did not start. The end of {service.log}:\n{service.last_words()}")
