"""Every fault once, by the command of the README's table."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
# Left to the long form: they take a minute each, in which nothing may happen.
SLOW = {"API silent for 2 min", "database locked for 1 min", "clock set forward an hour", "clock set back an hour"}


@pytest.mark.chaos
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("under", [[], ["--plain"]], ids=["koda up", "koda run"])
def test_training_recovers_from_each_fault_with_identical_weights(tmp_path: Path, under: list[str]) -> None:
    listed = subprocess.run(
        [sys.executable, "bench/chaos.py", "--list", *under], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    faults = [name for name in listed.stdout.splitlines() if name not in SLOW]
    if under:
        faults = ["SIGKILL", "SIGKILL of koda run"]
        assert set(faults) <= set(listed.stdout.splitlines())
    table = tmp_path / "chaos.json"
    command = [sys.executable, "bench/chaos.py", "--kills", str(len(faults)), "--faults", ",".join(faults)]
    command += ["--every", "150", *under]
    done = subprocess.run([*command, "--json", str(table)], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(table.read_text())
    assert result["same"] is True
    assert {row["fault"]: row["recovered"] for row in result["rows"]} == dict.fromkeys(
        [row["fault"] for row in result["rows"]], 1
    )
    assert len(result["rows"]) >= len(faults) - 1  # without the right to mount, no full disk
