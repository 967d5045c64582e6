"""The plots of the reports."""

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure

from model.evaluation.figures import average
from model.figures import SuiteFigures, TaskFigures
from model.training.records import Metrics
from tasks.reports import drawing
from tasks.reports.drawing import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RED, WIDE, pictured

SPIKED = 20.0  # times the median, from where on a gradient norm is drawn on a logarithmic axis


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
    figure, (axes,) = drawing.figure(width, height)
    _losses(axes, metrics, restarts)
    drawing.labels(axes, "step", "loss, nats per token")
    drawing.counts(axes.xaxis)
    drawing.legend(axes, 3)
    return figure


@pictured
def losses(width: float, metrics: Metrics, restarts: Sequence[int]) -> Figure:
    """The same for a page, lower: for the short trainings."""
    return loss(metrics, restarts, width, 2.3)


@pictured
def training(width: float, metrics: Metrics, restarts: Sequence[int], speeds: list[tuple[int, float]]) -> Figure:
    """Loss, learning rate, gradient norm and tokens per second over the same steps."""
    figure, panels = drawing.figure(width, 7.5, rows=4, sharex=True, height_ratios=[2.4, 1, 1, 1])
    _losses(panels[0], metrics, restarts)
    drawing.labels(panels[0], "", "loss, nats per token")
    drawing.legend(panels[0], 3)
    steps = [line.step for line in metrics.training]
    panels[1].plot(steps, [line.learning_rate for line in metrics.training], color=BLUE, linewidth=1.2)
    norms = [line.grad_norm for line in metrics.training]
    panels[2].plot(steps, norms, color=BLUE, linewidth=1)
    panels[3].plot([step for step, _ in speeds], [speed for _, speed in speeds], color=BLUE, linewidth=1)
    for axes, label in zip(panels[1:], ("learning rate", "gradient norm", "tokens per\nsecond"), strict=True):
        _marked(axes, restarts)
        drawing.labels(axes, "", label)
        if axes is panels[2] and max(norms) > SPIKED * sorted(norms)[len(norms) // 2]:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
    drawing.counts(panels[3].yaxis, 3)
    drawing.labels(panels[3], "step", "tokens per\nsecond")
    drawing.counts(panels[3].xaxis)
    figure.align_ylabels()
    return figure


@pictured
def against(width: float, curves: dict[str, list[tuple[Metrics, str]]]) -> Figure:
    """The loss of runs over the same axis, a panel for each axis: `{axis: [(metrics, name), …]}`; an axis is a field of
    the training metrics."""
    side_by_side = width == WIDE
    shape = (1, len(curves)) if side_by_side else (len(curves), 1)
    figure, panels = drawing.figure(width, 3.4 if side_by_side else 2.8 * len(curves), *shape)
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
        drawing.labels(axes, axis, "loss, nats per token")
        drawing.counts(axes.xaxis)
    drawing.legend(panels[0], 2)
    return figure


@pictured
def positions(width: float, measured: dict[str, Any]) -> Figure:
    """Held-out loss by position, one line for each way of reading further."""
    figure, (axes,) = drawing.figure(width, 3.4)
    edges = measured["edges"]
    middles = [(a + b) / 2 for a, b in pairwise(edges)]
    colours = {"unchanged": GREY, "linear": PURPLE, "yarn": GREEN, "ntk": BLUE}
    for name, values in measured["curves"].items():
        axes.plot(middles, values, "o-", color=colours.get(name, ORANGE), label=name, markersize=3.5)
    axes.axvline(measured["old_context"], color=GREY, linewidth=1, linestyle="--", label="old context")
    drawing.labels(axes, "position, tokens", "loss, nats per token")
    drawing.legend(axes, 6 if width == WIDE else 2)
    return figure


@pictured
def tasks(width: float, scores: dict[str, TaskFigures]) -> Figure:
    """Accuracy of each task with its standard error, the level of chance, and what needs no model."""
    figure, (axes,) = drawing.figure(width, 0.9 + 0.34 * len(scores))
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
    drawing.labels(axes, "%", "")
    drawing.legend(axes, 4 if width == WIDE else 2)
    return figure


def history(nights: list[tuple[float, SuiteFigures, bool]]) -> Figure:
    """Bits per byte and the average of the tasks, night by night: `(time, figures, is it a regression?)`, the latter in
    another colour."""
    figure, both = drawing.figure(WIDE, 4.6, 2, sharex=True)
    times = date2num([datetime.fromtimestamp(time) for time, _, _ in nights])
    flagged = [number for number, (_, _, worse) in enumerate(nights) if worse]
    bits = [figures.bits_per_byte for _, figures, _ in nights]
    averages = [100 * (average(figures.tasks) or 0) for _, figures, _ in nights]
    for axes, values, label in zip(both, (bits, averages), ("bits per byte", "average of the tasks, %"), strict=True):
        axes.plot(times, values, "o-", color=BLUE, linewidth=1, markersize=4)
        if flagged:
            worse = [values[n] for n in flagged]
            axes.plot(times[flagged], worse, "o", color=ORANGE, markersize=7, label="worse than before")
        drawing.labels(axes, "", label)
    drawing.legend(both[0], 1)
    places = AutoDateLocator(maxticks=8)
    both[1].xaxis.set_major_locator(places)
    both[1].xaxis.set_major_formatter(ConciseDateFormatter(places))
    return figure
