import json
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from flows.cli.plan import pretraining_job
from flows.config import load
from model.accelerators import ACCELERATORS, accelerator, flops_per_token, named
from model.errors import KodaError
from model.training.plan import cuda_compiler

SCANNED = ("--set", "pretrain.remat=dots", "--set", "pretrain.scan=true")  # compiled in less time


def plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli.main", "plan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_flops_per_token_of_the_reference_model_match_palm() -> None:
    """PaLM's 6 N + 12 L H Q T by hand: 1,166,282,752 weights in products, 24 layers of 2048, 1024 tokens."""
    shape = load("koda-1.3b").model.llama(50257)
    products = 1_269_209_088 - 50257 * 2048
    assert flops_per_token(shape, 1024) == 6 * products + 12 * 24 * 2048 * 1024
    assert flops_per_token(shape, 1024, causal=True) == 6 * products + 6 * 24 * 2048 * 1024


def test_tokenizer_that_is_not_there_is_refused_and_not_taken_for_gpt2(tmp_path: Path, tokenizer_file: Path) -> None:
    for there, size in (("gpt2", 50257), (str(tokenizer_file), 512), ("train", 4096)):
        assert pretraining_job(load("tiny", {"tokenize": {"tokenizer": there}})).model.vocab_size == size
    for missing in (str(tmp_path / "tokenizer.json"), str(tmp_path), "gpt-2"):
        with pytest.raises(KodaError, match=f"tokenize.tokenizer = '{missing}': no tokenizer there"):
            pretraining_job(load("tiny", {"tokenize": {"tokenizer": missing}}))


def test_device_is_recognised_by_its_name() -> None:
    for name, flops in (("NVIDIA H100 80GB HBM3", 989.4e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA L40S", 362.05e12)):
        device = accelerator(name)
        assert device is not None and device.bfloat16 == flops
    assert accelerator("cpu") is None


def test_plan_reports_what_fits_and_what_would_be_better() -> None:
    done = plan("--preset", "tiny", *SCANNED, "--gpu", "H100", "--count", "2", "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["parameters"] == 1_311_872
    assert figures["tokens"] == 3000 * 8 * 128
    # Muon keeps one moment of the matrices, AdamW two of the embedding and the norms.
    matrices = figures["parameters"] - (4096 + 9) * 128
    assert figures["checkpoint_bytes"] == pytest.approx(4 * (2 * matrices + 3 * 4105 * 128), rel=1e-3)
    assert figures["memory"]["fits"] and figures["memory"]["rows_that_fit"] >= 8
    best = figures["best_for_the_compute"]  # twenty tokens for each parameter, where no ladder knows better
    assert best["tokens"] == pytest.approx(20 * best["parameters"], rel=1e-4) and figures["forecast"] is None


def test_plan_reports_a_model_that_does_not_fit() -> None:
    """24 layers of 8192 on one device: the state alone is larger than its memory."""
    changes = ("hidden_size=8192", "intermediate_size=22016", "num_attention_heads=64", "num_key_value_heads=8")
    sets = [part for change in changes for part in ("--set", f"model.{change}")]
    # AdamW, for its step is compiled in half the time.
    done = plan(*sets, *SCANNED, "--set", "pretrain.optimizer=adamw", "--count", "1", "--json")
    assert done.returncode == 0, done.stderr
    memory = json.loads(done.stdout)["memory"]
    assert not memory["fits"] and memory["rows_that_fit"] == 0


def test_unknown_gpu_is_refused_by_name() -> None:
    done = plan("--gpu", "H300")
    assert done.returncode == 1 and "--gpu H300: known are L40S, RTX4090, A100, H100, H200, B200; " in done.stderr


def test_card_may_be_described_in_a_file(tmp_path: Path) -> None:
    fields = asdict(ACCELERATORS["RTX4090"]) | {"name": "RTX5090", "bandwidth": 1792e9}
    described = tmp_path / "card.toml"
    described.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in fields.items()))
    assert named(str(described)) == replace(ACCELERATORS["RTX4090"], name="RTX5090", bandwidth=1792e9)
    described.write_text('name = "RTX5090"\ncapability = [12, 0]\n')
    with pytest.raises(KodaError, match="missing 11 required keyword-only arguments: 'bfloat16', 'tf32'"):
        named(str(described))
    with pytest.raises(KodaError, match="No such file"):
        named(str(tmp_path / "other.toml"))


@pytest.mark.parametrize("hours", ["0", "-1", "nan"])
def test_budget_that_is_none_is_refused_before_anything_is_compiled(hours: str) -> None:
    done = plan("--budget-hours", hours)
    assert done.returncode == 1 and done.stderr == "koda: --budget-hours is above 0.\n"


@pytest.mark.cuda
@pytest.mark.skipif(not cuda_compiler(), reason="the extra `cuda` is not installed: XLA's CUDA compiler, 4 GB")
def test_plan_is_compiled_for_the_card_and_says_what_is_better() -> None:
    """With nothing kept, in `full`, a small model computes much twice; a form that keeps more is named."""
    small = ("num_hidden_layers=4", "hidden_size=256", "intermediate_size=704", "num_attention_heads=4")
    sets = [part for change in small for part in ("--set", f"model.{change}")]
    done = plan("--preset", "koda-124m", *sets, "--set", "pretrain.remat=full", "--gpu", "L40S", "--count", "1")
    assert done.returncode == 0, done.stderr
    assert "attention by cudnn" in done.stdout and "TFLOP in bf16" in done.stdout
    assert re.search(r"better +--set pretrain.remat=(none|dots)", done.stdout), done.stdout
