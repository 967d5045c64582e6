"""A real `koda up`, and a client of a real Prefect server, for the modules that need one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client

from tests.browser import browser
from tests.flows.up import Up, brought_up

__all__ = ["browser"]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, prose: str) -> Iterator[Up]:
    with brought_up(tmp_path_factory.mktemp("up"), prose) as up:
        yield up


@pytest.fixture
def client(prefect_server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncPrefectClient]:
    """A client of the server; all runs are in `tmp_path`."""
    monkeypatch.setenv("KODA_RUNS", str(tmp_path))
    with get_client(sync_client=True) as client:
        yield client
