"""Nights on a small model that was really trained: what is newest, what is flagged, and what is left alone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from model import weights
from model.errors import KodaError
from model.evaluation import suite
from model.evaluation.regression import compare
from model.export import hf
from model.files import write_checksums
from model.training.protocol import lines
from tasks import nightly
from tasks.evaluate import Evaluate

SETTINGS = Evaluate(items=40, max_bytes=30_000)


@pytest.fixture(scope="module")
def trained(finished: Path) -> Path:
    """A run whose base model was published as it was trained."""
    published = finished / "publish/hf"
    shutil.rmtree(published)
    base = weights.read(finished / "checkpoint/weights")
    hf.write(published, base, finished / "tokenize/tokenizer.json", "float32")
    write_checksums(published)
    return finished


@pytest.fixture
def small(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_server: None) -> Path:
    """A copy of the run, to be changed."""
    monkeypatch.setenv("KODA_RUNS", str(tmp_path))
    return Path(shutil.copytree(trained, tmp_path / "small"))


def measured(run_folder: Path) -> dict:
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


def history(run_folder: Path) -> list[dict]:
    return lines(run_folder / "nightly/history.jsonl")


def one_night(run_folder: Path) -> list:
    return nightly.measure.fn(run_folder, SETTINGS, 8.0, 0.0)


@pytest.mark.timeout(600)
def test_weights_with_noise_are_flagged_and_the_same_model_never_is(small: Path) -> None:
    """The same model twenty times, each as another machine would compute it: the last bits of its weights differ."""
    first = measured(small)
    for seed in range(20):
        disturb(small, 1e-6, seed)
        rows = compare(first, again := measured(small))
        assert not any(row.worse for row in rows), rows
        assert not any(row.worse for row in compare(again, first)), rows
    disturb(small, 0.3, 0)
    assert "bits per byte" in [row.measure for row in compare(first, measured(small)) if row.worse]


def test_a_regression_fails_the_night_with_the_table_and_stays_in_the_history(small: Path) -> None:
    assert one_night(small) == []  # nothing to compare with
    assert one_night(small) == [] and len(history(small)) == 1  # nothing new
    disturb(small, 0.3, 0)
    with pytest.raises(
        KodaError, match=r"worse than it was.*\n +bits per byte +\d\.\d+ → \d\.\d+ +p = .* than the last"
    ):
        one_night(small)
    disturb(small, 0.01, 1)
    with pytest.raises(KodaError, match="than the best"):  # no worse than last night, but than the first
        one_night(small)
    assert [bool(night["worse"]) for night in history(small)] == [False, True, True]
    assert (small / "nightly/history.png").read_bytes().startswith(b"\x89PNG")
    assert not (small / "nightly/.subject").exists()


def test_a_training_that_goes_on_is_measured_by_its_last_checkpoint(small: Path) -> None:
    """Its own checkpoint may be gone before it is read; and it is not compared with what was published before."""
    one_night(small)
    (small / "pretrain/stage.json").unlink()
    found = nightly.newest(small)
    assert found is not None and (found.kind, found.what) == ("checkpoint", "step 120")
    with nightly._kept(found, small, small / "nightly") as path:
        shutil.rmtree(small / "pretrain/checkpoints")
        later = suite.measure(str(path), str(small / "tokenize"), SETTINGS.items, SETTINGS.max_bytes)
    assert later["figures"]["bits_per_byte"] == pytest.approx(history(small)[0]["figures"]["bits_per_byte"], abs=2e-3)


def test_where_there_is_no_run_yet_there_is_nothing_to_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_night_yields_to_all_others_and_takes_no_more_memory_than_it_may(tmp_path: Path) -> None:
    order = {"function": "tests.tasks.background:place", "arguments": {}, "result": str(tmp_path / "result.json")}
    path = tmp_path / "call.json"

    def outcome(gigabytes: float, **more: object) -> subprocess.CompletedProcess:
        path.write_text(json.dumps({**order, **more, "background_gb": gigabytes}))
        return subprocess.run(
            [sys.executable, "-m", "model.process", str(path)], capture_output=True, text=True, start_new_session=True
        )

    assert outcome(4.0).returncode == 0
    assert json.loads((tmp_path / "result.json").read_text()) == {"nice": 19, "session": "19", "first to go": "1000"}
    refused = outcome(4.0, function="tests.tasks.background:swell")
    assert refused.returncode == 78 and "swell needs more memory than the 4 GB that it may take" in refused.stderr
