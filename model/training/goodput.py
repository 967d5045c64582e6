"""How a training's wall-clock was spent, over all its lives; the parts add up to the whole."""

from itertools import pairwise
from pathlib import Path
from typing import Any

from model.training.protocol import EVENTS, Heartbeat, event, lines

# What a life says it is doing → what that is to whoever pays for the hours.
PARTS = {
    "start": "start and compile",
    "compile": "start and compile",
    "train": "training",
    "data": "data wait",
    "save": "save stall",
    "evaluate": "evaluation",
}
REWORK, DOWN = "lost to rework", "down"


def record(folder: Path) -> None:
    """Write into the diary how the last life spent its time, as its last heartbeat tells; once for each life."""
    beat = Heartbeat.read(folder)
    if beat and beat["began"] not in {line["began"] for line in _lives(folder)}:
        event(folder, "spent", beat["step"], **{k: beat[k] for k in ("began", "first_step", "seconds")})


def goodput(folder: Path) -> dict[str, float]:
    """Seconds by what they went into, from the first life's beginning to the last sign of life; empty before that.

    Steps that a later life did again were `lost to rework`: their share of the life's training time. What lies between
    two lives was `down`.
    """
    lives = _lives(folder)
    beat = Heartbeat.read(folder)
    if beat and beat["began"] not in {life["began"] for life in lives}:
        lives.append({k: beat[k] for k in ("began", "first_step", "seconds", "step")})
    found = dict.fromkeys((*PARTS.values(), REWORK, DOWN), 0.0)
    for number, life in enumerate(lives):
        stepped = (later for later in lives[number + 1 :] if later["first_step"] is not None)
        resumed_at = next((later["first_step"] for later in stepped), life["step"])
        steps = life["step"] - life["first_step"] if life["first_step"] is not None else 0
        lost = min(1.0, max(0, life["step"] - resumed_at) / steps) if steps else 0.0
        for phase, seconds in life["seconds"].items():
            part = PARTS[phase]
            wasted = seconds * lost if phase in ("train", "data") else 0.0
            found[part] += seconds - wasted
            found[REWORK] += wasted
    for life, after in pairwise(lives):
        found[DOWN] += max(0.0, after["began"] - life["began"] - sum(life["seconds"].values()))
    return found if lives else {}


def shares(spent: dict[str, float]) -> dict[str, float]:
    """The same in percent."""
    total = sum(spent.values())
    return {part: 100 * seconds / total for part, seconds in spent.items()} if total else {}


def _lives(folder: Path) -> list[dict[str, Any]]:
    found = [line for line in lines(folder / EVENTS) if line["event"] == "spent"]
    return sorted(found, key=lambda life: life["began"])


def remaining(metrics: list[dict[str, Any]], step: int, steps: int) -> float | None:
    """Seconds to the end at the pace of the last lines of the metrics; None where there is no pace yet."""
    paced = metrics[-20:]
    if step >= steps or len(paced) < 2 or paced[-1]["step"] <= paced[0]["step"]:
        return None
    pace = (paced[-1]["time"] - paced[0]["time"]) / (paced[-1]["step"] - paced[0]["step"])
    return round(pace * (steps - step), 1)
