"""The server of one `koda run` ends with it, however that ends."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

CODE = """
import os, time
from flows.server.embedded import embedded_server, prepare_environment
prepare_environment()
with embedded_server():
    print(os.environ["PREFECT_API_URL"], flush=True)
    time.sleep({seconds})
"""


def start(folder: Path, seconds: float, **environment: str) -> subprocess.Popen:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_API")}
    return subprocess.Popen(
        [sys.executable, "-c", CODE.format(seconds=seconds)],
        cwd=folder,
        env=inherited | {"PREFECT_HOME": str(folder / "home"), "PYTHONPATH": str(Path.cwd())} | environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def responds(api: str) -> bool:
    try:
        with urllib.request.urlopen(f"{api}/health", timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, None], ids=["SIGKILL", "SIGTERM", "its end"])
def test_embedded_server_ends_with_its_command(tmp_path: Path, sent: signal.Signals | None) -> None:
    command = start(tmp_path, 300 if sent else 1)
    assert command.stdout is not None
    api = command.stdout.readline().strip()
    assert responds(api) or sent is None  # a command of one second may have ended by now
    if sent:
        command.send_signal(sent)
    command.wait(30)
    deadline = time.monotonic() + 30
    while responds(api):
        assert time.monotonic() < deadline, "the server is still running"
        time.sleep(0.2)


def test_no_server_is_embedded_where_one_is_configured(tmp_path: Path) -> None:
    command = start(tmp_path, 0, PREFECT_API_URL="http://127.0.0.1:9/api")
    printed, _ = command.communicate(timeout=60)
    assert printed.strip() == "http://127.0.0.1:9/api" and command.returncode == 0
