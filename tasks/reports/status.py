"""How far a run is, read from its folder alone."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from model.errors import KodaError
from model.export.formats import FORMATS
from model.figures import EvaluateFigures
from model.files import is_locked
from model.ladder.figures import Forecasted
from model.training.goodput import effective, goodput, shares
from model.training.heartbeat import Heartbeat
from model.training.records import read_events, read_metrics, remaining_seconds, restarts
from tasks.forecast import in_words, read_forecast
from tasks.progress import clock
from tasks.reports.recorded import RecordedRun
from tasks.runs.paths import RUN_TOML, STAGES, existing, folder_of, read_configuration
from tasks.runs.record import read_figures, read_record
from tasks.runs.up_to_date import replaced_input
from tasks.typed import typed


def status(name: str) -> dict[str, Any]:
    """`{name, preset, stages, step, steps, restarts, eta_seconds, goodput, effective, saves, forecast}` of a run.

    `saves`: seconds between the temporary saves, what one costs, and what would lose least with a fault an hour.

    The state of a stage is waiting, running, interrupted, done, or stale: built from a result that was rebuilt since.
    Raises KodaError where there is no such run.
    """
    folder = existing(name)
    config = read_configuration(folder)
    working = is_locked(folder / ".lock")
    stages = {stage: _stage(folder, stage, working) for stage in STAGES}
    training = folder / "pretrain"
    beat, steps = Heartbeat.read(training), config.get("pretrain", {}).get("steps")
    if not isinstance(steps, int):
        raise KodaError(f"{folder / RUN_TOML}: pretrain.steps = {steps!r}; it takes a number of steps.")
    step = steps if stages["pretrain"]["state"] in ("done", "stale") else beat["step"] if beat else 0
    return {
        "name": name,
        "preset": config.get("preset", "tiny"),
        "stages": list(stages.values()),
        "step": step,
        "steps": steps,
        "restarts": len(restarts(read_events(training))),
        "eta_seconds": remaining_seconds(read_metrics(training), step, steps) if working else None,
        "goodput": {part: round(share, 2) for part, share in shares(goodput(training)).items()},
        "effective": asdict(time) if (time := effective(training)) else {},
        "saves": beat.get("saves", {}) if beat else {},
        "forecast": asdict(expected) if (expected := read_forecast(training)) else {},
    }


def _stage(folder: Path, stage: str, working: bool) -> dict[str, Any]:
    record = read_record(folder / stage) or {}
    started = (folder / stage).exists() or (folder / f".{stage}.building").exists()
    if record:
        state = "stale" if replaced_input(folder, stage) else "done"
    else:
        state = ("running" if working else "interrupted") if started else "waiting"
    return {"stage": stage, "state": state, "seconds": record.get("seconds"), "figures": record.get("figures", {})}


def as_lines(state: dict[str, Any]) -> list[str]:
    """The status as a person reads it."""
    head = f"{state['name']} (preset {state['preset']}) · step {state['step']:,} of {state['steps']:,}"
    if state["restarts"]:
        head += f" · {state['restarts']} restarts"
    if state["eta_seconds"]:
        head += f" · {clock(state['eta_seconds'])} left in pretraining"
    rows = []
    for stage in state["stages"]:
        took = clock(stage["seconds"]) if stage["seconds"] is not None else ""
        numbers = [f"{k} {v}" for k, v in stage["figures"].items() if isinstance(v, int | float) and v is not True]
        rows.append(f"  {stage['stage']:<10} {stage['state']:<11} {took:>7}  {' · '.join(numbers[:5])}")
    if state["forecast"]:
        rows.append(f"  forecast: {in_words(typed(Forecasted, state['forecast']))}")
    if time := state["effective"]:
        faulty = f"with a fault an hour, each of {clock(time['fault_seconds'])}: {100 * time['hourly_fault']:.1f} %"
        rows.append(f"  effective time: {100 * time['share']:.1f} %; {faulty}")
    if saves := state["saves"]:
        rows.append(
            f"  a save every {clock(saves['interval'])} costs {saves['stall'] + saves['slowdown']:.2g} s "
            f"(least is lost with one every {clock(saves['optimal_interval'])}, with a fault an hour)"
        )
    if spent := [f"{part} {share:.1f} %" for part, share in state["goodput"].items() if share >= 0.05]:
        rows.append(f"  pretraining's time: {' · '.join(spent)}")
    return [head, *rows]


def closing_lines(name: str) -> list[str]:
    """What a finished run has made and where it lies; for a run that ended earlier, how far it is."""
    folder = folder_of(name)
    scores, published = read_figures(folder, EvaluateFigures), RecordedRun(folder).published
    reached = status(name)
    if scores is None or not published or any(stage["state"] != "done" for stage in reached["stages"]):
        return ["", *as_lines(reached)]
    return [
        "",
        f"{name}: {scores.bits_per_byte:.3f} bits per byte on held-out text, {scores.ratio_to_xz:.2f} × xz -9; "
        f"{scores.tasks_above_chance} of {len(scores.tasks)} tasks above chance",
        f"  report     {folder / 'report.html'}",
        *(f"  {format_:<10} {path}" for format_ in FORMATS if (path := folder / "convert" / format_).is_dir()),
        f"  published  {published}",
        f"  talk to it koda chat {name}      (.venv/bin/koda, where it is not on your PATH)",
    ]
