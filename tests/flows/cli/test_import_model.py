"""The settings of a run that `koda import` begins, and what it refuses; tests/model/export/test_import.py imports."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from flows.cli.import_model import settings
from flows.cli.main import main
from flows.config import load
from model.errors import KodaError
from model.files import sha256
from tasks.runs.paths import folder_of

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 320,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 48,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model's folder, beside the folder of all runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KODA_RUNS", str(tmp_path / "runs"))
    folder = tmp_path / "original"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file({"model.norm.weight": np.ones(64, np.float32)}, folder / "model.safetensors")
    return folder


def test_settings_have_the_shape_the_weights_and_the_tokenizer_of_a_folder(folder: Path) -> None:
    shape = {name: value for name, value in CONFIG.items() if name not in ("model_type", "architectures", "vocab_size")}
    hashes = f"{sha256(folder / 'config.json')} {sha256(folder / 'model.safetensors')}"
    expected = {
        "model": shape | {"qk_norm": False, "weights": str(folder), "weights_sha256": hashes},
        "tokenize": {"tokenizer": str(folder)},
    }
    assert settings(Path("original"), "imported") == expected  # absolute, for a run that is started elsewhere
    config = load("tiny", expected)
    assert config.model.model_dump() == expected["model"] and config.tokenize.tokenizer == str(folder)


def test_weights_decide_the_hash_and_where_they_are_does_not(folder: Path) -> None:
    """A stage that was built from them is stale where they changed, and up to date where they were moved."""
    before = settings(folder, "imported")["model"]
    moved = folder.rename(folder.with_name("moved"))
    after = settings(moved, "imported")["model"]
    assert after["weights"] != before["weights"] and after["weights_sha256"] == before["weights_sha256"]
    save_file({"model.norm.weight": np.zeros(64, np.float32)}, moved / "model.safetensors")
    assert settings(moved, "imported")["model"]["weights_sha256"] != before["weights_sha256"]


def test_folder_without_config_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(KodaError, match=r"original .*Hugging Face model.*no config\.json"):
        settings(folder, "imported")


def test_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(KodaError, match=r"model\.safetensors"):
        settings(folder, "imported")


def test_model_of_another_architecture_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | {"model_type": "gpt2"}))
    with pytest.raises(KodaError, match=r"config\.json: the model is gpt2"):
        settings(folder, "imported")


def test_run_that_began_with_a_training_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its checkpoints would be of another model; and by the command, before anything is written."""
    job = folder_of("trained") / "pretrain/job.json"
    job.parent.mkdir(parents=True)
    job.write_text("{}")
    with pytest.raises(KodaError, match="runs/trained began with a training of its own"):
        settings(folder, "trained")
    assert main(["import", str(folder), "--name", "trained"]) == 1
    assert "another --name" in capsys.readouterr().err
    assert [path.name for path in folder_of("trained").rglob("*") if path.is_file()] == ["job.json"]
