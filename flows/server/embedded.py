"""A Prefect server for one `koda run`: it ends with the command, however that ends.

`python -m flows.server.embedded PORT PARENT` is the server. Prefect starts one of its own where it knows of none; that
one goes on when its command is killed.
"""

import atexit
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from flows.environment import set_environment
from flows.server.health import responds
from model.errors import KodaError
from model.parent import die_with_parent
from model.ports import LOOPBACK, free_port

PATIENCE = 120.0  # seconds; a fresh database takes up to 30


_reserved: str | None = None  # the address of the embedded server, once this process is to have one


def prepare_environment() -> None:
    """Set what Prefect reads; without a server in its settings, that is the address of the embedded one.

    Must come before Prefect is imported, which reads the address then.
    """
    global _reserved
    set_environment(quiet=True)
    # Else a process of the run imports from the current folder, where a user's model.py may lie.
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    profiles = Path(os.environ["PREFECT_HOME"]) / "profiles.toml"
    configured = profiles.is_file() and "PREFECT_API_URL" in profiles.read_text(encoding="utf-8")
    if "PREFECT_API_URL" in os.environ or configured:
        return
    _reserved = os.environ["PREFECT_API_URL"] = f"http://{LOOPBACK}:{free_port()}/api"


@contextmanager
def embedded_server() -> Iterator[None]:
    """A server for the block, where `prepare_environment` reserved one. Raises KodaError where it does not start."""
    if _reserved is None or os.environ.get("PREFECT_API_URL") != _reserved:
        yield
        return
    server = subprocess.Popen(
        [sys.executable, "-m", "flows.server.embedded", str(urlsplit(_reserved).port), str(os.getpid())],
        env={**os.environ, "PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"},
        start_new_session=True,  # Ctrl-C is for the run, which then reports its end
    )
    atexit.register(_end, server)  # after the block, for Prefect sends its last events when the interpreter exits
    deadline = time.monotonic() + PATIENCE
    while not responds(_reserved):
        if server.poll() is not None or time.monotonic() > deadline:
            raise KodaError(f"the embedded Prefect server did not start (exit code {server.poll()}).")
        time.sleep(0.1)
    yield


def _end(server: subprocess.Popen) -> None:
    server.terminate()
    try:
        server.wait(5)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def main() -> None:
    import uvicorn

    port, parent = int(sys.argv[1]), int(sys.argv[2])
    die_with_parent()
    if os.getppid() == parent:  # else it died before the kernel knew
        app = "prefect.server.api.server:create_app"
        uvicorn.run(app, factory=True, host=LOOPBACK, port=port, log_level="error", lifespan="on")


if __name__ == "__main__":
    main()
