"""The settings under which Prefect is quiet, offline, and keeps its files inside the project."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model.errors import KodaError
from tasks.runs.paths import make_folder, root

HEARTBEAT_SECONDS = 30  # the shortest that Prefect takes
SETTINGS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # 22 to 28 s were seen on a fresh database; Prefect itself waits 20.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_CLI_PROMPT": "false",
    # The newer UI sends requests to amplitude.com from every page, whatever analytics are set to; the older sends none.
    "PREFECT_SERVER_UI_V2_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
    "PREFECT_WORKER_QUERY_SECONDS": "5",  # between two looks of the worker for due runs
    # Runs wait for each other here, and that is not late. With 200 waiting, marking them kept SQLite locked for
    # minutes: a new run took seconds to enter, and events that automations wait for were lost.
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
}


def set_environment(quiet: bool) -> None:
    """Set what Prefect and the processes under it read; must come before Prefect is imported.

    `quiet`: Koda prints its own lines; Prefect's, tracebacks among them, stay in its database.
    """
    if quiet:
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    ours = (root() / ".prefect").absolute()
    home = Path(os.environ.setdefault("PREFECT_HOME", str(ours)))
    if home != ours:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        return
    make_folder(home, 0o700)
    if home.stat().st_uid == os.getuid():  # of an earlier version
        home.chmod(0o700)  # the database in it has the secrets of blocks, and the key to them


@contextmanager
def causes_only() -> Iterator[None]:
    """Of a failure that is Koda's own or Prefect's, show the cause and not the way it came."""
    try:
        yield
    except (KodaError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise KodaError(f"{type(error).__name__}: {error}") from error
