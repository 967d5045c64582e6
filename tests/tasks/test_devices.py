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
    smi(tmp_path, monkeypatch, "0, GPU-a1b2, 30000, 46068", "1, GPU-a9c3, 3, 46068")
    assert devices.await_free(0)["CUDA_VISIBLE_DEVICES"] == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(KodaError, match="none of 1 GPUs became free"):
        devices.await_free(0)


def test_gpu_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(tmp_path, monkeypatch, "0, GPU-a1b2, 30000, 46068")
    monkeypatch.setattr(devices.time, "sleep", lambda _: smi(tmp_path, monkeypatch, "0, GPU-a1b2, 3, 46068"))
    assert devices.await_free(1)["CUDA_VISIBLE_DEVICES"] == "0"


def test_machine_without_gpus_waits_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert devices.await_free(0) == {}


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        ("1", ["1"]),
        ("GPU-a9c3", ["1"]),
        ("GPU-a9", ["1"]),
        ("GPU-a", ["0", "1"]),
        ("MIG-GPU-a1b2/3/0", ["0"]),
        ("", []),
    ],
)
def test_allowed_gpus_may_be_named_by_uuid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: str, expected: list[str]
) -> None:
    """As Slurm and MIG name them; a machine whose GPUs are not recognised would train on its processor."""
    smi(tmp_path, monkeypatch, "0, GPU-a1b2, 30000, 46068", "1, GPU-a9c3, 3, 46068")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    assert list(devices.gpus()) == expected


def test_training_on_a_machine_with_gpus_may_not_fall_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAX_PLATFORMS")
    assert devices.platforms() == {}
    smi(tmp_path, monkeypatch, "0, GPU-a1b2, 3, 46068")
    assert devices.platforms() == {"JAX_PLATFORMS": "cuda,cpu"}
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # who says so gets it
    assert devices.platforms() == {}
