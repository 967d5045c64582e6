import json
import subprocess
import sys

import pytest

from flows.cli.plan import expected_loss
from flows.config import load
from model.accelerators import accelerator, flops_per_token


def plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli.main", "plan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_flops_per_token_of_the_reference_model_match_palm() -> None:
    """PaLM's 6 N + 12 L H Q T by hand: 1,166,282,752 weights in products, 24 layers of 2048, 1024 tokens."""
    shape = load("koda-1.3b").model.llama(50257)
    products = 1_269_209_088 - 50257 * 2048
    assert flops_per_token(shape, 1024) == 6 * products + 12 * 24 * 2048 * 1024
    assert flops_per_token(shape, 1024, causal=True) == 6 * products + 6 * 24 * 2048 * 1024


def test_device_is_recognised_by_its_name() -> None:
    for name, flops in (("NVIDIA H100 80GB HBM3", 989.4e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA L40S", 362.05e12)):
        device = accelerator(name)
        assert device is not None and device.flops == flops
    assert accelerator("cpu") is None


def test_plan_reports_what_fits_and_what_would_be_better() -> None:
    done = plan("--preset", "tiny", "--set", "pretrain.scan=true", "--gpu", "H100", "--count", "2", "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["parameters"] == 2_410_176
    assert figures["tokens"] == 2400 * 8 * 128
    # Muon keeps one moment of the matrices, AdamW two of the embedding and the norms.
    matrices = figures["parameters"] - (4096 + 9) * 192
    assert figures["checkpoint_bytes"] == pytest.approx(4 * (2 * matrices + 3 * 4105 * 192), rel=1e-3)
    assert figures["memory"]["fits"] and figures["memory"]["rows_that_fit"] >= 8
    assert figures["best_for_the_compute"]["expected_loss"] <= figures["expected_loss"]


def test_plan_reports_a_model_that_does_not_fit() -> None:
    """24 layers of 8192 on one device: the state alone is larger than its memory."""
    changes = ("hidden_size=8192", "intermediate_size=22016", "num_attention_heads=64", "num_key_value_heads=8")
    sets = [part for change in changes for part in ("--set", f"model.{change}")]
    # AdamW, for its step is compiled in half the time.
    done = plan(*sets, "--set", "pretrain.optimizer=adamw", "--set", "pretrain.fsdp=1", "--count", "1", "--json")
    assert done.returncode == 0, done.stderr
    memory = json.loads(done.stdout)["memory"]
    assert not memory["fits"] and memory["rows_that_fit"] == 0


def test_unknown_gpu_is_refused_by_name() -> None:
    done = plan("--gpu", "H300")
    assert done.returncode == 1 and "--gpu H300: known are L40S, A100, H100, H200." in done.stderr


def test_recommended_size_has_the_lowest_expected_loss() -> None:
    """At equal compute, the loss of Hoffmann et al. is lowest near twenty tokens a parameter; their fit has it at fewer
    tokens for small budgets, so a factor of four either way is what can be required."""
    compute = 1.2e19
    best = expected_loss((compute / 120) ** 0.5, 20 * (compute / 120) ** 0.5)
    for factor in (1 / 8, 8):
        parameters = (compute / 120) ** 0.5 * factor
        assert expected_loss(parameters, compute / 6 / parameters) > best
