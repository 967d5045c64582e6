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
from model.accelerators import ACCELERATORS, GIB, USABLE, Accelerator, flops_per_token, named
from model.data import tokenizer as tokenizers
from model.errors import KodaError
from model.ladder.figures import Forecasted
from model.training.forms import DOUBLINGS, Plan
from model.training.job import Job
from tasks.forecast import finished_ladder, forecasted, in_words
from tasks.runs.paths import existing
from tasks.runs.up_to_date import stage_key
from tasks.supervise import call
from tasks.tokenize import tokenize
from tasks.typed import typed

TOKENS_PER_PARAMETER = 20  # where compute was spent best on web text (Hoffmann et al. 2022, arXiv:2203.15556)
GPT2_VOCABULARY = 50257
UTILISATION = 0.35  # of the peak, where the step cannot be compiled for the card: a usual figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", default="koda-1.3b", help="a preset's name (default: koda-1.3b)")
    add_set(parser)
    parser.add_argument(
        "--gpu", default="L40S", help=f"{', '.join(ACCELERATORS)}, or a TOML file that describes one (default: L40S)"
    )
    parser.add_argument("--count", type=int, default=2, help="devices (default: 2)")
    parser.add_argument(
        "--utilisation",
        type=float,
        help="share of peak FLOP/s to count with (default: what the compiled step comes to; "
        f"{UTILISATION} where it cannot be compiled for the card)",
    )
    parser.add_argument("--budget-hours", type=float, help="the best model and data for so many hours")
    parser.add_argument("--ladder", default="", metavar="RUN", help="forecast the loss by the ladder of this run")
    parser.add_argument("--json", action="store_true", help="for programs")


def main(arguments: argparse.Namespace) -> None:
    a = arguments
    settings, run = parsed(pairs(a)), existing(a.ladder) if a.ladder else None
    if run:  # the text and the tokenizer are those of the run
        settings["tokenize"] = load("", run=run).tokenize.model_dump(mode="json") | settings.get("tokenize", {})
    needs = planned(a.preset, settings, a.gpu, a.count, a.utilisation, a.budget_hours, run)
    print(json.dumps(needs, indent=1) if a.json else "\n".join(as_lines(needs)))


def planned(
    preset: str,
    settings: Settings,
    gpu: str,
    count: int,
    utilisation: float | None,
    budget_hours: float | None,
    ladder: Path | None = None,
) -> dict[str, Any]:
    """Parameters, memory, disk, hours and cost of a run, and by the run `ladder` what it will reach. Raises KodaError
    for what cannot be built, spread or forecast."""
    if count < 1 or (utilisation is not None and not 0 < utilisation <= 1):
        raise KodaError("--count is at least 1, and --utilisation a share between 0 and 1.")
    if budget_hours is not None and not 0 < budget_hours < math.inf:
        raise KodaError("--budget-hours is above 0.")
    config, card = load(preset, settings), named(gpu)
    job = pretraining_job(config)
    rows, context = config.pretrain.batch_size, config.model.max_position_embeddings
    per_token = flops_per_token(job.model, context)
    tokens = job.tokens
    expected = law = None
    if ladder:
        finished, text = finished_ladder(ladder), stage_key("tokenize", tokenize.version, (config.tokenize,))
        expected, law = forecasted(finished, ladder.name, job, text), finished.law
    step = _compile(job, card, count)
    peak = count * card.bfloat16
    if utilisation is not None or step.configured.seconds is None:
        shares = [utilisation or UTILISATION] * 2
    else:
        shares = [rows * context * per_token / (seconds * peak) for seconds in reversed(step.configured.seconds)]
    speeds = [share * peak / per_token for share in shares]  # tokens a second, the lower and the higher
    hours = [tokens / speed / 3600 for speed in reversed(speeds)]
    middle = sum(hours) / 2
    weights = 4 * job.model.parameters
    kept = config.pretrain.keep_checkpoints + 2  # beside the permanent ones, a temporary one and the one being written
    spent = per_token * tokens * (1 if budget_hours is None else budget_hours / middle)
    best = law.best(spent) if law else _usual(spent)
    return {
        "preset": preset,
        "gpu": card.name,
        "count": count,
        "parameters": job.model.parameters,
        "flops_per_token": per_token,
        "flops_convention": "PaLM: 6 N + 12 L heads head_dim T, N without the lookup table",
        "batch_rows": rows,
        "memory": {
            "backend": step.backend,
            "state_bytes": step.configured.state,
            "temporary_bytes": step.configured.temporary,
            "device_bytes": card.memory,
            "fits": step.configured.bytes <= USABLE * card.memory,
            "rows_that_fit": step.rows_that_fit,
        },
        "configured": asdict(step.configured),
        "chosen": asdict(step.chosen),
        "tried": [asdict(form) for form in step.tried],
        "checkpoint_bytes": step.checkpoint,
        "tokens": tokens,
        "tokens_per_parameter": tokens / job.model.parameters,
        "utilisation": shares,
        "tokens_per_second": speeds,
        "hours": hours,
        "dollars": middle * count * card.dollars,
        "dollars_per_device_hour": card.dollars,
        "forecast": asdict(expected) if expected else None,
        "disk_bytes": {
            "checkpoints": kept * step.checkpoint,
            "snapshots": 2 * job.model.parameters * len(job.recipe.snapshot_steps()),
            "token_shards": tokens * (2 if job.model.vocab_size <= 1 << 16 else 4),
            "weights_and_exports": round(weights * (3 + 2 * (1 + 0.5 + 0.27 + 0.5 + 0.27))),
        },
        "best_for_the_compute" if budget_hours is None else "best_for_the_budget": {
            "hours": middle if budget_hours is None else budget_hours,
            "parameters": round(best[0]) if best else None,
            "tokens": round(best[1]) if best else None,
            "bits_per_byte": law(*best) if law and best else None,
        },
    }


def _usual(flops: float) -> tuple[float, float]:
    """Parameters and tokens in the usual proportion, for so much compute."""
    parameters = math.sqrt(flops / (6 * TOKENS_PER_PARAMETER))
    return parameters, TOKENS_PER_PARAMETER * parameters


def as_lines(needs: dict[str, Any]) -> list[str]:
    """The plan as a person reads it."""
    memory = needs["memory"]
    best = needs.get("best_for_the_compute") or needs["best_for_the_budget"]
    target = "the same compute" if "best_for_the_compute" in needs else f"{best['hours']:.3g} hours"
    total = memory["state_bytes"] + memory["temporary_bytes"]
    verdict = "fits" if memory["fits"] else "does not fit"
    disk, percent = sum(needs["disk_bytes"].values()), [100 * share for share in needs["utilisation"]]
    more = ", and more" if memory["rows_that_fit"] >= needs["batch_rows"] << DOUBLINGS else ""
    lines = [
        f"{needs['preset']} on {needs['count']} × {needs['gpu']}",
        f"  parameters    {needs['parameters']:,}",
        f"  per token     {needs['flops_per_token'] / 1e9:.3g} GFLOP ({needs['flops_convention']})",
        f"  memory        {memory['state_bytes'] / GIB:.1f} GiB of weights and optimizer + "
        f"{memory['temporary_bytes'] / GIB:.1f} GiB for a step of {needs['batch_rows']} rows = {total / GIB:.1f} of "
        f"{memory['device_bytes'] / GIB:.1f} GiB on each device: {verdict}",
        f"  rows at once  {memory['rows_that_fit']:,} rows in a step fit{more} (see gradient_accumulation_steps)",
        *(_compiled_lines(needs) if memory["backend"] == "gpu" else UNCOMPILED),
        f"  disk          {disk / 1e9:.1f} GB, of it {needs['checkpoint_bytes'] / 1e9:.1f} GB for each checkpoint",
        f"  tokens        {needs['tokens'] / 1e9:.3g} B, {needs['tokens_per_parameter']:.2g} for each parameter",
        f"  time          {_range(needs['hours'], '.1f')} h at {_range(percent, '.0f')} % of peak "
        f"({_range(needs['tokens_per_second'], ',.0f')} tokens/s)",
        f"  cost          about ${needs['dollars']:,.0f} at ${needs['dollars_per_device_hour']:.2f} a device and hour",
        _best(best, target),
    ]
    if needs["forecast"]:
        lines.append("                by the ladder")
        lines.append(f"  forecast      {in_words(typed(Forecasted, needs['forecast']))}")
    else:
        lines.append(
            f"                by {TOKENS_PER_PARAMETER} tokens for each parameter, as on web text; `koda ladder` "
            "measures it on yours"
        )
    ratio = needs["tokens_per_parameter"] / TOKENS_PER_PARAMETER
    if not needs["forecast"] and not 0.25 < ratio < 4:
        far, side = (1 / ratio, "fewer") if ratio < 1 else (ratio, "more")
        lines.append(
            f"                {far:.0f} times {side} tokens for each parameter than where compute is spent best"
        )
    return lines


def _best(best: dict[str, Any], target: str) -> str:
    if best["parameters"] is None:
        return f"  for {target}, there is no best size: the ladder shows no effect of the size, or of the text"
    parameters, tokens = best["parameters"] / 1e6, best["tokens"] / 1e9
    return f"  for {target}, the best size is about {parameters:,.3g} M parameters on {tokens:.3g} B tokens"


UNCOMPILED = [
    "  compiled      for this machine's CPU, not for the card: memory by the CPU's analysis, time by a flat share of",
    "                the peak. `make cuda` installs XLA's CUDA compiler, which needs no GPU; then it is",
    "                .venv-cuda/bin/koda plan",
]


def _range(values: list[float], form: str) -> str:
    low, high = (format(value, form) for value in values)
    return low if low == high else f"{low} to {high}"


def _compiled_lines(needs: dict[str, Any]) -> list[str]:
    """What the compiled step does, and the best of the forms that were tried."""
    step, chosen = needs["configured"], needs["chosen"]
    flops = " + ".join(f"{value / 1e12:,.0f} TFLOP in {kind}" for kind, value in step["flops"].items())
    wire = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in step["wire"].items() if size > 1e7)
    parts = {"gemm": "products", "attention": "attention", "other": "memory-bound", "collective": "communication"}
    times = ", ".join(
        f"{words} {1e3 * step['parts'][part]:.0f}" for part, words in parts.items() if step["parts"][part]
    )
    lines = [
        f"  compiled      for the card: {flops}, attention by {step['attention']}"
        + (f"; GB of collectives a step: {wire}" if wire else ""),
        f"                milliseconds a step: {times} (computed from the card's rates)",
    ]
    for form in needs["tried"]:
        total, milliseconds = form["state"] + form["temporary"], [1e3 * each for each in form["seconds"]]
        fits = "" if total <= USABLE * needs["memory"]["device_bytes"] else ": does not fit"
        lines.append(f"                  {_form(form)}: {total / GIB:.1f} GiB, {_range(milliseconds, ',.0f')} ms{fits}")
    if chosen != step:
        settings = {"remat": chosen["remat"], "scan": str(chosen["scan"]).lower(), "fsdp": chosen["fsdp"]}
        changes = " ".join(f"--set pretrain.{name}={value}" for name, value in settings.items())
        lines.append(f"  better        {changes}")
    return lines


def _form(form: dict[str, Any]) -> str:
    return f"remat {form['remat']}, {'scan' if form['scan'] else 'unrolled'}, fsdp {form['fsdp']}"


def pretraining_job(config: RunConfig) -> Job:
    """The pretraining of this configuration, without its data."""
    kind = config.tokenize.tokenizer
    if kind == "train":
        vocabulary = config.tokenize.vocab_size
    else:
        vocabulary = GPT2_VOCABULARY if kind == "gpt2" else tokenizers.load(kind).size
    return config.pretrain.job(config.model.llama(vocabulary), folder="", train="", heldout="", end_of_text=0)


def _compile(job: Job, card: Accelerator, count: int) -> Plan:
    with tempfile.TemporaryDirectory() as scratch:
        return call(
            "model.training.plan:plan",
            Path(scratch) / "log",
            Plan,
            environment={
                "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}",
                "JAX_PLATFORMS": "cpu",
            },
            job=asdict(job),
            card=asdict(card),
            devices=count,
        )
