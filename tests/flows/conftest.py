"""A real `koda up`, for the modules that want one."""

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.up import Up

PROJECT = Path(__file__).parents[2]
DEPLOYED = ("flows", "tasks", "model", "prefect.yaml")


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, prose: str) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("up")
    for name in DEPLOYED:
        source = PROJECT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    (folder / "text").mkdir()
    for number, start in enumerate(range(0, 160_000, 4_000)):
        (folder / "text" / f"{number:02}.txt").write_text(prose[start : start + 4_000])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    up = Up(folder, port, {**os.environ, "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"})
    try:
        assert f"Koda is up: http://127.0.0.1:{port}" in up.koda("up")
        yield up
    finally:
        assert "ended: worker, files, server" in up.koda("down")
    assert up.koda("down") == "nothing was up\n"
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        pass  # nothing is left that listens
