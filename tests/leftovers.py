"""Processes that a test session started and that are still running at its end."""

import os
import time
import uuid
from pathlib import Path

MARK = "KODA_TEST_SESSION"  # in the environment of all that the session starts
PATIENCE = 15.0  # seconds for processes that are ending


def mark() -> None:
    """Give this session a name, unless it is a worker of one that has one."""
    os.environ.setdefault(MARK, uuid.uuid4().hex)


def leftovers() -> list[str]:
    """The command lines of processes of this session but for its own, once those that are ending had time to."""
    deadline = time.monotonic() + PATIENCE
    while (running := _running()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return running


def _running() -> list[str]:
    name, commands = f"{MARK}={os.environ[MARK]}".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if int(process.name) != os.getpid() and name in (process / "environ").read_bytes().split(b"\0"):
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ")
                if b"multiprocessing.resource_tracker" not in command:  # it ends with this interpreter
                    commands.append(command.decode(errors="replace").strip())
        except (OSError, ValueError):  # it has ended, or is another user's
            continue
    return list(filter(None, commands))  # a zombie has no command line
