"""`koda up`: a Prefect server, the work pool, the deployments and a worker, for as long as the command runs."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from flows.environment import set_environment
from model.errors import KodaError

HOST, PORT = "127.0.0.1", 4200  # the loopback address: whoever reaches the server can start runs
POOL = "koda"
SERVER_PATIENCE = 120.0  # seconds; a fresh database takes up to 30


def up() -> int:
    """Start everything, say where the UI is, and end everything on Ctrl-C or SIGTERM.

    A server that answers at PREFECT_API_URL, or at the usual port, is used and left as it is. Raises KodaError where
    something does not start.
    """
    set_environment(quiet=False)
    os.environ.setdefault("PREFECT_API_URL", f"http://{HOST}:{PORT}/api")
    if not Path("prefect.yaml").is_file():
        raise KodaError("`koda up` reads prefect.yaml: start it in the project's folder.")
    logs = Path(os.environ["PREFECT_HOME"])
    children: list[subprocess.Popen] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    try:
        if not _answers():
            print("starting the Prefect server …", flush=True)
            asked = urllib.parse.urlsplit(os.environ["PREFECT_API_URL"])
            if asked.hostname != HOST:
                raise KodaError(
                    f"nothing answers at PREFECT_API_URL = {asked.geturl()}; a server is only started on {HOST}."
                )
            port = str(asked.port or PORT)
            children.append(_start(["server", "start", "--host", HOST, "--port", port], logs / "server.log"))
            _wait(children[0], logs / "server.log")
        _prefect("work-pool", "create", POOL, "--type", "process", "--overwrite")
        _prefect("deploy", "--all")
        _run([sys.executable, "-m", "flows.automations"], "the automations")
        children.append(_start(["worker", "start", "--pool", POOL, "--type", "process"], logs / "worker.log"))
        address = os.environ["PREFECT_API_URL"].removesuffix("/api")
        print(f"Koda is up: {address} · start a run there, or with `prefect deployment run koda/pretrain`", flush=True)
        print("Ctrl-C ends server and worker.", flush=True)
        while all(child.poll() is None for child in children):
            time.sleep(0.5)
        raise KodaError(f"the server or the worker ended by itself; {logs}/*.log says why.")
    except KeyboardInterrupt:
        print("ending …", flush=True)
        return 0
    finally:
        for child in reversed(children):
            _end(child)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "prefect", *arguments]


def _start(arguments: list[str], log: Path) -> subprocess.Popen:
    with log.open("ab") as output:
        return subprocess.Popen(
            _command(*arguments),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this process only, which then ends them in order
        )


def _prefect(*arguments: str) -> None:
    _run(_command("--no-prompt", *arguments), f"`prefect {' '.join(arguments)}`")


def _run(command: list[str], what: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise KodaError(f"{what} failed:\n{(done.stdout + done.stderr).strip()[-2000:]}")


def _answers() -> bool:
    try:
        with urllib.request.urlopen(f"{os.environ['PREFECT_API_URL']}/health", timeout=2) as reply:
            return json.load(reply) is True
    except (OSError, ValueError, urllib.error.URLError):
        return False


def _wait(server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + SERVER_PATIENCE
    while not _answers():
        if server.poll() is not None or time.monotonic() > deadline:
            tail = log.read_text(encoding="utf-8", errors="replace")[-1500:]
            raise KodaError(
                f"the Prefect server did not start at {os.environ['PREFECT_API_URL']}. The end of {log}:\n{tail}"
            )
        time.sleep(0.5)


def _end(child: subprocess.Popen) -> None:
    if child.poll() is None:
        child.send_signal(signal.SIGINT)
        try:
            child.wait(40)  # the worker ends its runs, and a training saves
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
