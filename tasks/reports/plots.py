"""Plots as SVG text, in colours that read on light and on dark paper."""

import io
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import same_color
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from model.evaluation.figures import average
from model.figures import SuiteFigures, TaskFigures
from model.files import atomic_write
from model.training.records import Metrics

BLUE, ORANGE, GREEN, PURPLE, RED, GREY = "#3b82c4", "#e0832f", "#3f9d6b", "#9566c0", "#d8483a", "#8a94a3"
INK = "#123456"  # a placeholder for the page's own text colour
WIDE, NARROW = 8.0, 3.9  # inches, on a desk and on a phone: letters keep their size, and the plot has less room
SPIKED = 20.0  # times the median, from where on a gradient norm is drawn on a logarithmic axis

P = ParamSpec("P")


def _pictured(draw: Callable[Concatenate[float, P], Figure]) -> Callable[P, str]:
    """Draw for both widths, as SVG; the page's style shows one of them."""

    @wraps(draw)
    def picture(*args: P.args, **kwargs: P.kwargs) -> str:
        sizes = {"wide": WIDE, "narrow": NARROW}
        return "".join(_svg(draw(width, *args, **kwargs), name) for name, width in sizes.items())

    return picture


def _figure(width: float, height: float, rows: int = 1, columns: int = 1, **more: Any) -> tuple[Figure, list[Axes]]:
    figure, grid = plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False, **more)
    figure.patch.set_alpha(0)
    for axes in grid.flat:
        axes.patch.set_alpha(0)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(GREY)
        axes.tick_params(colors=INK, labelsize=9)
        axes.grid(color=GREY, alpha=0.2)
        axes.set_axisbelow(True)
    return figure, list(grid.flat)


def _svg(figure: Figure, name: str) -> str:
    buffer = io.StringIO()
    # the salt parts the names inside: a plot must not lean on one that is not shown
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = re.sub(r"(?s)^.*?(?=<svg)", "", buffer.getvalue()).replace(INK, "currentColor")
    text = re.sub(r' id="[A-Za-z0-9]+_\d+"', "", text)  # nothing refers to these, and each plot has the same ones
    return text.replace("<svg", f'<svg class="{name}" role="img"', 1)


def _labels(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, color=INK, fontsize=9)
    axes.set_ylabel(y, color=INK, fontsize=9)


def _legend(axes: Axes, columns: int) -> None:
    """Above the plot, where it covers no line."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            frameon=False,
            labelcolor=INK,
            ncols=columns,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            borderpad=0,
            fontsize=9,
        )


def _counts(axis: Axis, ticks: int = 6) -> None:
    """Few ticks with short labels, so that they do not overlap."""

    def label(value: float, _: int) -> str:
        unit = next((unit for unit in (1e9, 1e6) if abs(value) >= unit), 1)
        return f"{value / unit:,.4g} {'B' if unit == 1e9 else 'M'}" if unit > 1 else f"{value:,.0f}"

    axis.set_major_locator(MaxNLocator(ticks))
    axis.set_major_formatter(FuncFormatter(label))


def png(figure: Figure) -> bytes:
    """A picture for pages that take no SVG, in grey ink that reads on light and dark."""
    buffer = io.BytesIO()
    for text in figure.findobj(matplotlib.text.Text):
        if same_color(text.get_color(), INK):  # a legend's is given in numbers
            text.set_color(GREY)
    for axes in figure.axes:
        axes.tick_params(colors=GREY)
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Such a picture in a file."""
    with atomic_write(path, "wb") as file:
        file.write(png(figure))


def _marked(axes: Axes, restarts: Sequence[int]) -> None:
    for number, step in enumerate(restarts):  # a label that begins so is in no legend
        axes.axvline(step, color=RED, linewidth=1.2, linestyle="--", label="_" if number else "restart")


def _losses(axes: Axes, metrics: Metrics, restarts: Sequence[int]) -> None:
    training = [(line.step, line.loss) for line in metrics.training]
    heldout = [(line.step, line.heldout_loss) for line in metrics.heldout]
    for points, label, colour, width, marker in (
        (training, "training", BLUE, 1, ""),
        (heldout, "held-out", ORANGE, 1.5, "o"),
    ):
        if points:
            axes.plot(
                *zip(*points, strict=True), color=colour, linewidth=width, marker=marker, markersize=4, label=label
            )
    _marked(axes, restarts)


def loss(metrics: Metrics, restarts: Sequence[int], width: float = WIDE, height: float = 3.2) -> Figure:
    """Training and held-out loss by step."""
    figure, (axes,) = _figure(width, height)
    _losses(axes, metrics, restarts)
    _labels(axes, "step", "loss, nats per token")
    _counts(axes.xaxis)
    _legend(axes, 3)
    return figure


@_pictured
def losses(width: float, metrics: Metrics, restarts: Sequence[int]) -> Figure:
    """The same for a page, lower: for the short trainings."""
    return loss(metrics, restarts, width, 2.3)


@_pictured
def training(width: float, metrics: Metrics, restarts: Sequence[int], speeds: list[tuple[int, float]]) -> Figure:
    """Loss, learning rate, gradient norm and tokens per second over the same steps."""
    figure, panels = _figure(width, 7.5, rows=4, sharex=True, height_ratios=[2.4, 1, 1, 1])
    _losses(panels[0], metrics, restarts)
    _labels(panels[0], "", "loss, nats per token")
    _legend(panels[0], 3)
    steps = [line.step for line in metrics.training]
    panels[1].plot(steps, [line.learning_rate for line in metrics.training], color=BLUE, linewidth=1.2)
    norms = [line.grad_norm for line in metrics.training]
    panels[2].plot(steps, norms, color=BLUE, linewidth=1)
    panels[3].plot([step for step, _ in speeds], [speed for _, speed in speeds], color=BLUE, linewidth=1)
    for axes, label in zip(panels[1:], ("learning rate", "gradient norm", "tokens per\nsecond"), strict=True):
        _marked(axes, restarts)
        _labels(axes, "", label)
        if axes is panels[2] and max(norms) > SPIKED * sorted(norms)[len(norms) // 2]:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
    _counts(panels[3].yaxis, 3)
    _labels(panels[3], "step", "tokens per\nsecond")
    _counts(panels[3].xaxis)
    figure.align_ylabels()
    return figure


@_pictured
def against(width: float, curves: dict[str, list[tuple[Metrics, str]]]) -> Figure:
    """The loss of runs over the same axis, a panel for each axis: `{axis: [(metrics, name), …]}`; an axis is a field of
    the training metrics."""
    side_by_side = width == WIDE
    shape = (1, len(curves)) if side_by_side else (len(curves), 1)
    figure, panels = _figure(width, 3.4 if side_by_side else 2.8 * len(curves), *shape)
    for axes, (axis, runs) in zip(panels, curves.items(), strict=True):
        for (metrics, name), colour in zip(runs, (BLUE, ORANGE), strict=False):
            where = {line.step: getattr(line, axis) for line in metrics.training}
            known = [line for line in metrics.heldout if line.step in where]
            axes.plot(
                list(where.values()),
                [line.loss for line in metrics.training],
                color=colour,
                linewidth=0.8,
                alpha=0.45,
            )
            axes.plot(
                [where[line.step] for line in known],
                [line.heldout_loss for line in known],
                "o-",
                color=colour,
                markersize=4,
                label=name,
            )
        _labels(axes, axis, "loss, nats per token")
        _counts(axes.xaxis)
    _legend(panels[0], 2)
    return figure


@_pictured
def positions(width: float, measured: dict[str, Any]) -> Figure:
    """Held-out loss by position, one line for each way of reading further."""
    figure, (axes,) = _figure(width, 3.4)
    edges = measured["edges"]
    middles = [(a + b) / 2 for a, b in pairwise(edges)]
    colours = {"unchanged": GREY, "linear": PURPLE, "yarn": GREEN, "ntk": BLUE}
    for name, values in measured["curves"].items():
        axes.plot(middles, values, "o-", color=colours.get(name, ORANGE), label=name, markersize=3.5)
    axes.axvline(measured["old_context"], color=GREY, linewidth=1, linestyle="--", label="old context")
    _labels(axes, "position, tokens", "loss, nats per token")
    _legend(axes, 6 if width == WIDE else 2)
    return figure


@_pictured
def tasks(width: float, scores: dict[str, TaskFigures]) -> Figure:
    """Accuracy of each task with its standard error, the level of chance, and what needs no model."""
    figure, (axes,) = _figure(width, 0.9 + 0.34 * len(scores))
    names = list(scores)
    axes.barh(
        names,
        [100 * (scores[n].acc or 0) for n in names],
        xerr=[200 * (scores[n].stderr or 0) for n in names],
        height=0.62,
        color=BLUE,
        ecolor=INK,
        capsize=2,
        label="accuracy ± 2 SE",
    )
    for key, marker, colour, label in (
        ("chance", "|", ORANGE, "chance"),
        ("longest", "^", GREEN, "longest choice"),
        ("unigram", "D", PURPLE, "unigram frequency"),
    ):
        there = [name for name in names if getattr(scores[name], key) is not None]
        style: dict[str, Any] = {"markersize": 15, "markeredgewidth": 2} if marker == "|" else {"markersize": 5}
        axes.plot(
            [100 * getattr(scores[n], key) for n in there],
            there,
            marker,
            color=colour,
            label=label,
            markeredgecolor=colour if marker == "|" else "white",
            **{"markeredgewidth": 0.7, **style},
        )
    axes.invert_yaxis()
    axes.set_xlim(0, 104)
    axes.grid(False, axis="y")
    _labels(axes, "%", "")
    _legend(axes, 4 if width == WIDE else 2)
    return figure


def history(nights: list[tuple[float, SuiteFigures, bool]]) -> Figure:
    """Bits per byte and the average of the tasks, night by night: `(time, figures, is it a regression?)`, the latter in
    another colour."""
    figure, both = _figure(WIDE, 4.6, 2, sharex=True)
    times = date2num([datetime.fromtimestamp(time) for time, _, _ in nights])
    flagged = [number for number, (_, _, worse) in enumerate(nights) if worse]
    bits = [figures.bits_per_byte for _, figures, _ in nights]
    averages = [100 * (average(figures.tasks) or 0) for _, figures, _ in nights]
    for axes, values, label in zip(both, (bits, averages), ("bits per byte", "average of the tasks, %"), strict=True):
        axes.plot(times, values, "o-", color=BLUE, linewidth=1, markersize=4)
        if flagged:
            worse = [values[n] for n in flagged]
            axes.plot(times[flagged], worse, "o", color=ORANGE, markersize=7, label="worse than before")
        _labels(axes, "", label)
    _legend(both[0], 1)
    places = AutoDateLocator(maxticks=8)
    both[1].xaxis.set_major_locator(places)
    both[1].xaxis.set_major_formatter(ConciseDateFormatter(places))
    return figure
