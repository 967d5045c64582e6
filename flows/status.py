"""How far a run is, read from its folder alone."""

import contextlib
import time
import tomllib
from pathlib import Path
from typing import Any

from model.files import held, read_json
from model.training.goodput import goodput, remaining, shares
from model.training.protocol import METRICS, Heartbeat, lines, restarts
from tasks.progress import clock
from tasks.run import RECORD, STAGES, existing, folder_of


def status(name: str) -> dict[str, Any]:
    """`{name, preset, stages, step, steps, restarts, eta_seconds, goodput}`; KodaError where there is no such run."""
    folder = existing(name)
    config = tomllib.loads((folder / "run.toml").read_text(encoding="utf-8"))
    working = held(folder / ".lock")
    stages = [_stage(folder, stage, working) for stage in STAGES]
    beat = Heartbeat.read(folder / "pretrain")
    steps = config["pretrain"]["steps"]
    step = steps if stages[1]["state"] == "done" else (beat or {"step": 0})["step"]
    losses = [line for line in lines(folder / "pretrain" / METRICS) if "loss" in line]
    return {
        "name": name,
        "preset": config["preset"],
        "stages": stages,
        "step": step,
        "steps": steps,
        "restarts": len(restarts(folder / "pretrain")),
        "eta_seconds": remaining(losses, step, steps) if working else None,
        "goodput": {part: round(share, 2) for part, share in shares(goodput(folder / "pretrain")).items()},
    }


def _stage(folder: Path, stage: str, working: bool) -> dict[str, Any]:
    record: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        record = read_json(folder / stage / RECORD)
    begun = (folder / stage).exists() or (folder / f".{stage}.building").exists()
    state = "done" if record else ("running" if working else "interrupted") if begun else "waiting"
    return {"stage": stage, "state": state, "seconds": record.get("seconds"), "figures": record.get("figures", {})}


def as_lines(found: dict[str, Any]) -> list[str]:
    """The status as a person reads it."""
    head = f"{found['name']} (preset {found['preset']}) · step {found['step']:,} of {found['steps']:,}"
    if found["restarts"]:
        head += f" · {found['restarts']} restarts"
    if found["eta_seconds"]:
        head += f" · {clock(found['eta_seconds'])} left in pretraining"
    rows = []
    for stage in found["stages"]:
        took = clock(stage["seconds"]) if stage["seconds"] is not None else ""
        shown = [f"{k} {v}" for k, v in stage["figures"].items() if isinstance(v, int | float) and v is not True]
        rows.append(f"  {stage['stage']:<10} {stage['state']:<11} {took:>7}  {' · '.join(shown[:5])}")
    if spent := [f"{part} {share:.1f} %" for part, share in found["goodput"].items() if share >= 0.05]:
        rows.append(f"  pretraining's time: {' · '.join(spent)}")
    return [head, *rows]


def watch(name: str) -> None:
    """Keep the status on the screen for as long as the run is being worked on."""
    from rich.live import Live
    from rich.text import Text

    with Live(refresh_per_second=1) as live:
        while held(existing(name) / ".lock"):
            live.update(Text("\n".join(as_lines(status(name)))))
            time.sleep(1)
        live.update(Text(""))


def closing_lines(name: str) -> list[str]:
    """What a finished run has made and where it lies; for a run that ended earlier, how far it is."""
    folder = folder_of(name)
    if not all((folder / stage / RECORD).is_file() for stage in STAGES):
        return ["", *as_lines(status(name))]
    figures = {stage: read_json(folder / stage / RECORD)["figures"] for stage in STAGES}
    scores = figures["evaluate"]
    return [
        "",
        f"{name}: {scores['bits_per_byte']:.3f} bits per byte on held-out text, {scores['ratio_to_xz']:.2f} × xz -9; "
        f"{scores['tasks_above_chance']} of {len(scores['tasks'])} tasks above chance",
        f"  report     {folder / 'report.html'}",
        *(f"  {kind:<10} {path}" for kind in ("hf", "gguf", "mlx") if (path := folder / "convert" / kind).is_dir()),
        f"  published  {figures['publish']['where']}",
        f"  talk to it koda chat {name}      (.venv/bin/koda, where it is not on your PATH)",
    ]
