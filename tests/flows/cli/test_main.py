"""The command as its own process, as a person meets it: errors that a person can fix."""

import subprocess
from pathlib import Path

import pytest

from tests.pipeline import KODA


def koda(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([KODA, *arguments], cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--preset", "tny"], "did you mean tiny?"),
        (["run", "--set", "pretrain.stepz=3"], "did you mean steps?"),
        (["run", "--set", "pretrain.steps"], "section.key=value"),
        (["run", "--set", "model.num_attention_heads=9"], "model.num_attention_heads = 9"),
        (["run", "--name", "../elsewhere"], "cannot be a run's name"),
        (["run", "--until", "training"], "no stage is called 'training'"),
        (["status", "nothing"], "there is no run 'nothing'"),
        (["report", "nothing"], "there is no run 'nothing'"),
        (["chat", "nothing", "--prompt", "x"], "`koda run --name nothing` makes it"),
    ],
)
def test_errors_are_one_line_without_traceback(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = koda(*arguments, folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("koda: ") and message in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert not any(tmp_path.rglob("run.toml"))  # refused before anything was written
