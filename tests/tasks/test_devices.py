import os
from pathlib import Path

import pytest

from model.errors import KodaError
from tasks import devices


def smi(folder: Path, monkeypatch: pytest.MonkeyPatch, *rows: str) -> None:
    """An `nvidia-smi` that prints these lines: the real one needs a GPU."""
    program = folder / "nvidia-smi"
    program.write_text("#!/bin/sh\n" + "".join(f"echo '{row}'\n" for row in rows))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_free_gpu_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(tmp_path, monkeypatch, "0, 30000, 46068", "1, 3, 46068")
    assert devices.await_free(0)["CUDA_VISIBLE_DEVICES"] == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(KodaError, match="none of 1 GPUs became free"):
        devices.await_free(0)


def test_gpu_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(tmp_path, monkeypatch, "0, 30000, 46068")
    monkeypatch.setattr(devices.time, "sleep", lambda _: smi(tmp_path, monkeypatch, "0, 3, 46068"))
    assert devices.await_free(1)["CUDA_VISIBLE_DEVICES"] == "0"


def test_machine_without_gpus_waits_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert devices.await_free(0) == {}
