"""`koda plan`: what a run will take, before any of it is paid for."""

import argparse
import json
import math
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flows.cli.settings import add_set, pairs
from flows.config import RunConfig, Settings, load, parsed
from model.accelerators import ACCELERATORS, GIB, USABLE, flops_per_token
from model.data import tokenizer as tokenizers
from model.errors import KodaError
from model.training.job import Job
from tasks.supervise import call

TOKENS_PER_PARAMETER = 20  # where compute is spent best (Hoffmann et al. 2022, arXiv:2203.15556)
GPT2_VOCABULARY = 50257
DOUBLINGS = 4  # batch sizes that are tried: the configured one, and its doubles


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", default="koda-1.3b", help="a preset's name (default: koda-1.3b)")
    add_set(parser)
    parser.add_argument("--gpu", default="L40S", help=f"{', '.join(ACCELERATORS)} (default: L40S)")
    parser.add_argument("--count", type=int, default=2, help="devices (default: 2)")
    parser.add_argument("--utilisation", type=float, default=0.35, help="share of peak FLOP/s assumed (default: 0.35)")
    parser.add_argument("--budget-hours", type=float, help="the best model and data for so many hours")
    parser.add_argument("--json", action="store_true", help="for programs")


def main(arguments: argparse.Namespace) -> None:
    a = arguments
    needs = plan(a.preset, parsed(pairs(a)), a.gpu, a.count, a.utilisation, a.budget_hours)
    print(json.dumps(needs, indent=1) if a.json else "\n".join(as_lines(needs)))


def plan(
    preset: str, settings: Settings, gpu: str, count: int, utilisation: float, budget_hours: float | None
) -> dict[str, Any]:
    """Parameters, memory, disk, hours and cost of a run. Raises KodaError for what cannot be built or spread."""
    if gpu not in ACCELERATORS:
        raise KodaError(f"--gpu {gpu}: known are {', '.join(ACCELERATORS)}.")
    if count < 1 or not 0 < utilisation <= 1:
        raise KodaError("--count is at least 1, and --utilisation a share between 0 and 1.")
    config, device = load(preset, settings), ACCELERATORS[gpu]
    job = pretraining_job(config)
    rows, context = config.pretrain.batch_size, config.model.max_position_embeddings
    per_token = flops_per_token(job.model, context)
    tokens = config.pretrain.steps * rows * context
    speed = count * device.flops * utilisation
    hours = tokens * per_token / speed / 3600
    needs = _memory(job, count, rows, USABLE * device.memory)
    weights = 4 * job.model.parameters
    planned: dict[str, Any] = {
        "preset": preset,
        "gpu": gpu,
        "count": count,
        "parameters": job.model.parameters,
        "flops_per_token": per_token,
        "flops_convention": "PaLM: 6 N + 12 L heads head_dim T, N without the lookup table",
        "batch_rows": rows,
        "memory": {**needs, "device_bytes": device.memory},
        "checkpoint_bytes": needs["checkpoint"],
        "tokens": tokens,
        "tokens_per_parameter": tokens / job.model.parameters,
        "utilisation": utilisation,
        "tokens_per_second": speed / per_token,
        "hours": hours,
        "dollars": hours * count * device.dollars,
        "dollars_per_device_hour": device.dollars,
        "expected_loss": expected_loss(job.model.parameters, tokens),
    }
    kept = config.pretrain.keep_checkpoints + 2  # beside the permanent ones, a temporary one and the one being written
    planned["disk_bytes"] = {
        "checkpoints": kept * planned["checkpoint_bytes"],
        "token_shards": tokens * (2 if job.model.vocab_size <= 1 << 16 else 4),
        "weights_and_exports": round(weights * (3 + 2 * (1 + 0.5 + 0.27 + 0.5 + 0.27))),
    }
    spent = tokens * per_token if budget_hours is None else budget_hours * 3600 * speed
    parameters = math.sqrt(spent / (6 * TOKENS_PER_PARAMETER))
    planned["best_for_the_compute" if budget_hours is None else "best_for_the_budget"] = {
        "hours": spent / speed / 3600,
        "parameters": round(parameters),
        "tokens": round(TOKENS_PER_PARAMETER * parameters),
        "expected_loss": expected_loss(parameters, TOKENS_PER_PARAMETER * parameters),
    }
    return planned


def expected_loss(parameters: float, tokens: float) -> float:
    """Hoffmann et al. 2022 (arXiv:2203.15556, equation 10): nats per token on their text with their tokenizer.

    For comparing two sizes with one another; it is no promise for other text.
    """
    return 1.69 + 406.4 / parameters**0.34 + 410.7 / tokens**0.28


def as_lines(needs: dict[str, Any]) -> list[str]:
    """The plan as a person reads it."""
    memory = needs["memory"]
    best = needs.get("best_for_the_compute") or needs["best_for_the_budget"]
    target = "the same compute" if "best_for_the_compute" in needs else f"{best['hours']:.3g} hours"
    total = memory["state_bytes"] + memory["temporary_bytes"]
    verdict = "fits" if memory["fits"] else "does not fit"
    whose = "" if memory["backend"] == "gpu" else f" (the {memory['backend'].upper()} backend's analysis; no GPU here)"
    disk = sum(needs["disk_bytes"].values())
    more = ", and more" if memory["rows_that_fit"] == needs["batch_rows"] << (DOUBLINGS - 1) else ""
    lines = [
        f"{needs['preset']} on {needs['count']} × {needs['gpu']}",
        f"  parameters    {needs['parameters']:,}",
        f"  per token     {needs['flops_per_token'] / 1e9:.3g} GFLOP ({needs['flops_convention']})",
        f"  memory        {memory['state_bytes'] / GIB:.1f} GiB of weights and optimizer + "
        f"{memory['temporary_bytes'] / GIB:.1f} GiB for a step of {needs['batch_rows']} rows = {total / GIB:.1f} of "
        f"{memory['device_bytes'] / GIB:.1f} GiB on each device: {verdict}{whose}",
        f"  rows at once  {memory['rows_that_fit']:,} rows in a step fit{more} (see gradient_accumulation_steps)",
        f"  disk          {disk / 1e9:.1f} GB, of it {needs['checkpoint_bytes'] / 1e9:.1f} GB for each checkpoint",
        f"  tokens        {needs['tokens'] / 1e9:.3g} B, {needs['tokens_per_parameter']:.2g} for each parameter",
        f"  time          {needs['hours']:.1f} h at {100 * needs['utilisation']:.0f} % of peak "
        f"({needs['tokens_per_second']:,.0f} tokens/s)",
        f"  cost          about ${needs['dollars']:,.0f} at ${needs['dollars_per_device_hour']:.2f} a device and hour",
        f"  for {target}, the best size is about {best['parameters'] / 1e6:,.0f} M parameters on "
        f"{best['tokens'] / 1e9:.3g} B tokens",
        f"                expected loss {best['expected_loss']:.2f}, for this plan {needs['expected_loss']:.2f} "
        "(Hoffmann et al. 2022; to compare, not to promise)",
    ]
    ratio = needs["tokens_per_parameter"] / TOKENS_PER_PARAMETER
    if not 0.25 < ratio < 4:
        far, side = (1 / ratio, "fewer") if ratio < 1 else (ratio, "more")
        lines.append(
            f"                {far:.0f} times {side} tokens for each parameter than where compute is spent best"
        )
    return lines


def pretraining_job(config: RunConfig) -> Job:
    """The pretraining of this configuration, without its data."""
    kind = config.tokenize.tokenizer
    if kind == "train":
        vocabulary = config.tokenize.vocab_size
    else:
        vocabulary = tokenizers.load(kind).get_vocab_size() if Path(kind).exists() else GPT2_VOCABULARY
    return config.pretrain.job(config.model.llama(vocabulary), folder="", train="", heldout="", end_of_text=0)


def _memory(job: Job, count: int, rows: int, usable: float) -> dict[str, Any]:
    """What a device needs for the configured rows, and how many would fit."""
    unit = max(1, count // job.tensor) * job.recipe.gradient_accumulation_steps
    compiled = _compile(job, count, [rows << doubling for doubling in range(DOUBLINGS)], usable)
    sizes = {int(tried): needs["state"] + needs["temporary"] for tried, needs in compiled["rows"].items()}
    fit = max((tried for tried, size in sizes.items() if size <= usable), default=0)
    if above := [tried for tried in sizes if tried > fit]:  # somewhere between the two; a line is a good guess
        low, high = fit or unit, above[0]
        share = (usable - sizes.get(low, 0)) / (sizes[high] - sizes.get(low, 0))
        guess = low + int(0.93 * share * (high - low)) // unit * unit
        needs = _compile(job, count, [guess], usable)["rows"][str(guess)]
        fit = guess if needs["state"] + needs["temporary"] <= usable else fit
    configured = compiled["rows"][str(rows)]
    return {
        "backend": compiled["backend"],
        "state_bytes": configured["state"],
        "temporary_bytes": configured["temporary"],
        "fits": sizes[rows] <= usable,
        "rows_that_fit": fit,
        "checkpoint": compiled["checkpoint"],
    }


def _compile(job: Job, count: int, rows: list[int], usable: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        return call(
            "model.training.plan:memory",
            Path(scratch) / "log",
            dict[str, Any],
            environment={
                "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}",
                "JAX_PLATFORMS": "cpu",
            },
            job=asdict(job),
            rows=rows,
            enough=usable,
        )
