"""Every fault once, by the command of the README's table."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
# Left to the long form: they wait for Prefect by the minute.
SLOW = {"API silent for 2 min", "SIGKILL of worker and all"}


@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_training_recovers_from_each_fault_with_identical_weights(tmp_path: Path) -> None:
    listed = subprocess.run(
        [sys.executable, "bench/chaos.py", "--list"], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    faults = [name for name in listed.stdout.splitlines() if name not in SLOW]
    table = tmp_path / "chaos.json"
    command = [sys.executable, "bench/chaos.py", "--kills", str(len(faults)), "--faults", ",".join(faults)]
    command += ["--every", "150"]
    done = subprocess.run([*command, "--json", str(table)], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(table.read_text())
    assert result["same"] is True
    assert {row["fault"]: row["recovered"] for row in result["rows"]} == dict.fromkeys(
        [row["fault"] for row in result["rows"]], 1
    )
    assert len(result["rows"]) >= len(faults) - 1  # without the right to mount, no full disk
