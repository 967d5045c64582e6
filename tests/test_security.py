"""No code runs because a file was read, and no run can be read by every user of its machine."""

import re
import stat
from pathlib import Path

import pytest

from tasks.runs.run import Run

PROJECT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "forbidden", [r"\bpickle\b", r"allow_pickle\s*=\s*True", r"trust_remote_code\s*=\s*True", r"torch\.load"]
)
def test_no_format_is_read_that_can_run_code(forbidden: str) -> None:
    """Weights are safetensors, GGUF or arrays with a checksum, text is JSON and numpy's plain arrays."""
    ours = [path for folder in ("flows", "tasks", "model") for path in (PROJECT / folder).rglob("*.py")]
    assert len(ours) > 80
    assert not [path for path in ours if re.search(forbidden, path.read_text())]


def test_other_users_cannot_read_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KODA_RUNS", str(tmp_path))
    with Run("mine"):
        pass
    assert not stat.S_IMODE((tmp_path / "mine").stat().st_mode) & stat.S_IRWXO
