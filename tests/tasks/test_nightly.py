"""Nightly evaluations of a small model that was really trained: which weights are newest, and what is a regression."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from model import weights
from model.data import tokenizer as tokenizers
from model.errors import KodaError
from model.evaluation import suite
from model.evaluation.regression import Compared, compare
from model.exit_codes import UNUSABLE
from model.export.formats import hf
from model.figures import Measurement
from model.files import read_lines, write_checksums
from tasks import nightly
from tasks.evaluate import Evaluate

SETTINGS = Evaluate(items=40, max_bytes=30_000)


@pytest.fixture(scope="module")
def trained(finished_run: Path) -> Path:
    """A run whose base model was published as it was trained."""
    published = finished_run / "publish/hf"
    shutil.rmtree(published)
    base = weights.read(finished_run / "checkpoint/weights")
    hf.write(published, base, tokenizers.load(str(finished_run / "tokenize/tokenizer.json")), "float32")
    write_checksums(published)
    return finished_run


@pytest.fixture
def small(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_server: None) -> Path:
    """A copy of the run, to be changed."""
    monkeypatch.setenv("KODA_RUNS", str(tmp_path))
    return Path(shutil.copytree(trained, tmp_path / "small"))


def measured(run_folder: Path) -> Measurement:
    return suite.measure(
        str(run_folder / "publish/hf"), str(run_folder / "tokenize"), SETTINGS.items, SETTINGS.max_bytes
    )


def disturb(run_folder: Path, share: float, seed: int) -> None:
    """Add noise to the published weights: so large a share of each matrix's own size."""
    draw = np.random.default_rng(seed)
    (file,) = (run_folder / "publish/hf").glob("*.safetensors")
    noisy = {}
    for name, array in load_file(file).items():
        noisy[name] = array + np.float32(share) * array.std() * draw.standard_normal(array.shape, np.float32)
    file.unlink()
    save_file(noisy, file, {"format": "pt"})
    write_checksums(run_folder / "publish/hf")


def history(run_folder: Path) -> list[dict[str, Any]]:
    return read_lines(run_folder / "nightly/history.jsonl")


def one_night(run_folder: Path) -> list[Compared]:
    return nightly.measure.fn(run_folder, SETTINGS, 8.0, 0.0)


@pytest.mark.timeout(600)
def test_noise_in_the_weights_is_a_regression_and_rounding_never_is(small: Path) -> None:
    """The same model twenty times, each as another machine would compute it: the last bits of its weights differ."""
    first = measured(small)
    for seed in range(20):
        disturb(small, 1e-6, seed)
        second = measured(small)
        for rows in (compare(first, second), compare(second, first)):
            assert not any(row.worse for row in rows), rows
    disturb(small, 0.3, 0)
    assert "bits per byte" in [row.measure for row in compare(first, measured(small)) if row.worse]


def test_regression_fails_the_night_with_the_table_and_is_in_the_history(small: Path) -> None:
    assert one_night(small) == []  # nothing to compare with
    assert one_night(small) == [] and len(history(small)) == 1  # nothing new
    disturb(small, 0.3, 0)
    with pytest.raises(
        KodaError, match=r"significantly worse than before.*\n +bits per byte +\d\.\d+ → \d\.\d+ +p = .* than the last"
    ):
        one_night(small)
    disturb(small, 0.01, 1)
    with pytest.raises(KodaError, match="than the best"):  # worse than the first night, though not than the last
        one_night(small)
    assert [bool(night["worse"]) for night in history(small)] == [False, True, True]
    assert (small / "nightly/history.png").read_bytes().startswith(b"\x89PNG")
    assert not (small / "nightly/.subject").exists()


def test_running_training_is_measured_by_its_last_checkpoint(small: Path) -> None:
    """Which the training may have removed before it is read; a published model is not compared with it."""
    one_night(small)
    (small / "pretrain/stage.json").unlink()
    newest = nightly.newest(small)
    assert newest is not None and (newest.kind, newest.what) == ("checkpoint", "step 120")
    with nightly._kept(newest, small, small / "nightly") as path:
        shutil.rmtree(small / "pretrain/checkpoints")
        later = suite.measure(str(path), str(small / "tokenize"), SETTINGS.items, SETTINGS.max_bytes)
    assert later.figures.bits_per_byte == pytest.approx(history(small)[0]["figures"]["bits_per_byte"], abs=2e-3)


def test_without_any_run_nothing_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KODA_RUNS", str(tmp_path))
    assert nightly.run_to_measure("") is None


def test_without_a_name_the_newest_run_is_measured(small: Path) -> None:
    assert nightly.run_to_measure("") == small
    other = Path(shutil.copytree(small, small.parent / "other"))
    os.utime(small / "run.toml", (1, 1))
    assert nightly.run_to_measure("") == other and nightly.run_to_measure("small") == small
    shutil.rmtree(other / "publish")
    assert nightly.run_to_measure("") == other  # its last checkpoint
    shutil.rmtree(other / "pretrain/checkpoints")
    assert nightly.run_to_measure("") == small
    with pytest.raises(KodaError, match="run 'other' has neither a checkpoint nor a published model"):
        nightly.run_to_measure("other")


def test_background_process_yields_to_all_others_and_is_bounded_in_memory(tmp_path: Path) -> None:
    order = {"function": "tests.tasks.background:priorities", "arguments": {}, "result": str(tmp_path / "result.json")}
    path = tmp_path / "call.json"

    def outcome(gigabytes: float, **more: object) -> subprocess.CompletedProcess:
        path.write_text(json.dumps({**order, **more, "background_gb": gigabytes}))
        return subprocess.run(
            [sys.executable, "-m", "model.call", str(path)], capture_output=True, text=True, start_new_session=True
        )

    assert outcome(4.0).returncode == 0
    assert json.loads((tmp_path / "result.json").read_text()) == {"nice": 19, "session": "19", "oom_score_adj": "1000"}
    refused = outcome(4.0, function="tests.tasks.background:allocate")
    assert refused.returncode == UNUSABLE
    assert "allocate needs more memory than the 4 GB that it may take" in refused.stderr
