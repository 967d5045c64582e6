"""A real `koda up`, for the modules that want one."""

from collections.abc import Iterator

import pytest

from tests.flows.up import Up, brought_up


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, prose: str) -> Iterator[Up]:
    with brought_up(tmp_path_factory.mktemp("up"), prose) as up:
        yield up
