"""`bench/gpu.py` in its smallest form on this machine's processor: a typing error must not cost the hour on a card."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

GPU = str(Path(__file__).parents[2] / "bench/gpu.py")


@pytest.mark.bench
@pytest.mark.timeout(1800)
def test_all_cases_of_all_calls_run(tmp_path: Path) -> None:
    subprocess.run([sys.executable, GPU, "prepare", str(tmp_path), "--smoke"], check=True)
    for call in "ABCD":
        ended = subprocess.run([sys.executable, GPU, call, str(tmp_path), "--smoke"], capture_output=True, text=True)
        lines = [json.loads(line) for line in (tmp_path / f"{call}.jsonl").read_text().splitlines()]
        errors = {line["case"]: line["error"] for line in lines if "error" in line}
        assert not errors and ended.returncode == 0, errors
        if call == "A":
            figures = {line["case"]: line for line in lines}
            assert figures["trainer"]["codes"][0] == -9 and figures["trainer"]["finite"]
            parts = [row + part for row in ("whole", "packed") for part in ("", " dq", " dk", " dv")]
            assert max(figures["attention"][part] for part in parts) < 0.02
        if call == "D":
            hashes = {line["sha256"] for line in lines if line["case"].startswith("repeat")}
            assert len(hashes) == 1
            assert [line["equal"] for line in lines if line["case"] == "save"] == [[True, True]]
