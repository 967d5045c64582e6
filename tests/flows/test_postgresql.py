"""Koda on a Prefect server whose state is in PostgreSQL, as a server for more than one person does."""

import json
import re
from pathlib import Path

import pytest

from flows.config import parsed
from tests.flows.up import brought_up
from tests.pipeline import SMALL
from tests.postgresql import ABSENT, PostgreSQL

pytestmark = [pytest.mark.postgresql, pytest.mark.skipif(bool(ABSENT), reason=ABSENT)]


@pytest.mark.timeout(1800)
def test_pipeline_runs_on_a_worker(tmp_path: Path, prose: str) -> None:
    with PostgreSQL() as database, brought_up(tmp_path, prose, **database.env) as up:
        parameters = ["--param", "name=small", "--param", f"settings={json.dumps(parsed(SMALL))}"]
        assert "Completed" in up.prefect("deployment", "run", "koda/pipeline", *parameters, "--watch")
        status = json.loads(up.koda("status", "small", "--json"))
        assert [stage["state"] for stage in status["stages"]] == ["done"] * 8
        assert (
            database.ask("SELECT name, state_type FROM flow_run WHERE state_type <> 'SCHEDULED'") == "small|COMPLETED"
        )
        names = database.ask("SELECT name FROM task_run WHERE state_type = 'COMPLETED'").splitlines()
        built = {re.split(r"[ -]", name)[0] for name in names}
        assert {"tokenize", "pretrain", "sft", "extend", "convert", "evaluate", "publish"} <= built
        assert not list(tmp_path.rglob("prefect.db*"))
