"""Plots as SVG text, in colours that read on light and on dark paper."""

import io
import re
from datetime import datetime
from itertools import pairwise
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import same_color
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from model.evaluation.figures import average

BLUE, ORANGE, GREEN, PURPLE, GREY = "#3b82c4", "#e0832f", "#3f9d6b", "#9566c0", "#8a94a3"
INK = "#123456"  # stands for the page's own text colour, and is replaced by it


def _figure(height: float = 3.2) -> tuple[Figure, Axes]:
    figure, axes = plt.subplots(figsize=(8, height), layout="constrained")
    figure.patch.set_alpha(0)
    _paper(axes)
    return figure, axes


def _paper(axes: Axes) -> None:
    axes.patch.set_alpha(0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GREY)
    axes.tick_params(colors=INK)
    axes.grid(color=GREY, alpha=0.2)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "koda"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return re.sub(r"(?s)^.*?(?=<svg)", "", text).replace(INK, "currentColor")


def _labels(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, labelcolor=INK)


def png(figure: Figure) -> bytes:
    """A picture for pages that take no SVG, in grey ink that reads on light and dark."""
    buffer = io.BytesIO()
    for text in figure.findobj(matplotlib.text.Text):
        if same_color(text.get_color(), INK):
            text.set_color(GREY)
    for axes in figure.axes:
        axes.tick_params(colors=GREY)
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()


def curve(metrics: list[dict[str, Any]], restarts: list[int]) -> str:
    """Training and held-out loss by step."""
    return _svg(curve_figure(metrics, restarts))


def curve_figure(metrics: list[dict[str, Any]], restarts: list[int]) -> Figure:
    """The same, before it is a picture."""
    figure, axes = _figure()
    trained = [line for line in metrics if "loss" in line]
    heldout = [line for line in metrics if "heldout_loss" in line]
    axes.plot([m["step"] for m in trained], [m["loss"] for m in trained], color=BLUE, linewidth=1, label="training")
    axes.plot([m["step"] for m in heldout], [m["heldout_loss"] for m in heldout], "o-", color=ORANGE, label="held-out")
    for step in restarts:
        axes.axvline(step, color=GREY, linewidth=1)
    _labels(axes, "step", "loss, nats per token")
    return figure


def positions(found: dict[str, Any]) -> str:
    """Held-out loss by position, one line for each way of reading further."""
    figure, axes = _figure()
    edges = found["edges"]
    middles = [(a + b) / 2 for a, b in pairwise(edges)]
    colours = {"unchanged": GREY, "linear": PURPLE, "yarn": GREEN, "ntk": BLUE}
    for name, losses in found["curves"].items():
        axes.plot(middles, losses, "o-", color=colours.get(name, ORANGE), label=name, markersize=4)
    axes.axvline(found["old_context"], color=GREY, linewidth=1, linestyle="--")
    _labels(axes, "position, tokens", "loss, nats per token")
    axes.legend(frameon=False, labelcolor=INK, ncols=5, loc="lower left", bbox_to_anchor=(0, 1))
    return _svg(figure)


def bars(tasks: dict[str, dict[str, Any]]) -> str:
    """Accuracy of each task with its standard error, and the level of chance."""
    figure, axes = _figure(2.8)
    names = list(tasks)
    axes.bar(
        names,
        [100 * tasks[n]["acc"] for n in names],
        yerr=[200 * tasks[n]["stderr"] for n in names],
        color=BLUE,
        ecolor=INK,
        capsize=3,
        label="accuracy, ± 2 standard errors",
    )
    axes.plot(names, [100 * tasks[n]["chance"] for n in names], "_", color=ORANGE, markersize=40, label="chance")
    axes.set_ylim(0, 125)
    _labels(axes, "", "%")
    axes.legend(frameon=False, labelcolor=INK, ncols=2, loc="upper left")
    return _svg(figure)


def history(nights: list[dict[str, Any]]) -> Figure:
    """Bits per byte and the average of the tasks, night by night; nights with a regression in another colour."""
    figure, both = plt.subplots(2, 1, figsize=(8, 4.6), sharex=True, layout="constrained")
    figure.patch.set_alpha(0)
    times = [datetime.fromtimestamp(night["time"]) for night in nights]
    flagged = [number for number, night in enumerate(nights) if night["worse"]]
    bits = [night["figures"]["bits_per_byte"] for night in nights]
    averages = [100 * (average(night["figures"]["tasks"]) or 0) for night in nights]
    for axes, values, label in zip(both, (bits, averages), ("bits per byte", "average of the tasks, %"), strict=True):
        _paper(axes)
        axes.plot(times, values, "o-", color=BLUE, linewidth=1, markersize=4)
        if flagged:
            marked = [times[n] for n in flagged], [values[n] for n in flagged]
            axes.plot(*marked, "o", color=ORANGE, markersize=7, label="worse than before")
        _labels(axes, "", label)
    places = AutoDateLocator(maxticks=8)
    both[1].xaxis.set_major_locator(places)
    both[1].xaxis.set_major_formatter(ConciseDateFormatter(places))
    return figure
