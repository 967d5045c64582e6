"""The plots of `koda inspect`: maps of heads, layers and tokens, and how figures moved over a training."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from model.inspect.figures import HeadPattern, Learning, Stretching
from tasks.reports import drawing
from tasks.reports.drawing import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RED, WIDE, pictured
from tasks.reports.inspect_guide import SCORES

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED, GREY, "#b5a642")
ROW, FEWEST = 0.11, 0.6  # inches of a row of a map, and of a map at least
MOST = 36  # heads in a map over snapshots
LABELLED = 12  # ticks of an axis at most
FULL = 0.2  # of a score: its colours do not magnify what is smaller than this
LEAST = 1e-4  # of the largest value, which a logarithmic axis reaches down to
Ranges = dict[str, tuple[float, float]]  # where the colours of each score begin and end


def _map(axes: Axes, values: np.ndarray, title: str, low: float | None = None, high: float | None = None) -> None:
    """A matrix as colours, with its scale beside it."""
    image = axes.imshow(values, aspect="auto", cmap="viridis", interpolation="nearest", vmin=low, vmax=high)
    axes.grid(False)
    axes.set_title(title, fontsize=9, color=INK, loc="left").set_in_layout(False)  # a long one needs no wider panel
    bar = axes.figure.colorbar(image, ax=axes, pad=0.01, aspect=12)
    bar.ax.tick_params(colors=INK, labelsize=8)
    bar.outline.set_visible(False)


def _ticks(axes: Axes, names: Sequence[object], axis: str) -> None:
    """Labels of columns (`x`) or rows (`y`), as many as there is room for, the first and the last among them."""
    places = sorted({round(place) for place in np.linspace(0, len(names) - 1, min(LABELLED, len(names)))})
    side = axes.xaxis if axis == "x" else axes.yaxis
    side.set_ticks(places, [str(names[place]) for place in places])


def scores(learning: Learning, names: Sequence[str], beside: Sequence[Learning] = ()) -> str:
    """These scores of the heads: snapshot by snapshot, or of finished weights by layer and head. The colours also span
    those of the models that stand `beside` it."""
    titles = {name: f"{SCORES[name]} (chance {learning.chance[name]:.3g})" for name in names}
    ranges = {name: _range(name, [one.scores[name] for one in (learning, *beside)]) for name in names}
    return (course if learning.kept else heads)(learning, titles, ranges)


@pictured
def course(width: float, learning: Learning, names: dict[str, str], ranges: Ranges) -> Figure:
    """The loss, and below it each head's scores, snapshot by snapshot: `names`, the scores and their titles. Of many
    heads, those whose last score is farthest from chance."""
    heads = [f"{layer}.{head}" for layer, row in enumerate(learning.ablation) for head in range(len(row))]
    heights = [1.5, *([max(FEWEST, ROW * min(len(heads), MOST))] * len(names))]
    height = sum(heights) + 0.42 * len(heights)
    drawn, panels = drawing.figure(width, height, len(heights), sharex=True, height_ratios=heights)
    numbers = range(len(learning.steps))
    for values, label, colour in (
        (learning.losses, "held-out text", BLUE),
        (learning.first_losses, "random tokens", GREY),
        (learning.second_losses, "their repetition", ORANGE),
    ):
        panels[0].plot(numbers, values, "o-", color=colour, markersize=3, linewidth=1.3, label=label)
    drawing.labels(panels[0], "", "loss, nats")
    drawing.legend(panels[0], 3 if width == WIDE else 2)
    for axes, (name, title) in zip(panels[1:], names.items(), strict=True):
        by_head = np.array(learning.scores[name]).reshape(len(numbers), -1).T
        clear = np.sort(np.argsort(-abs(by_head[:, -1] - learning.chance[name]), kind="stable")[:MOST])
        _map(axes, by_head[clear], title, *ranges[name])
        _ticks(axes, [heads[number] for number in clear], "y")
        drawing.labels(axes, "", "layer.head")
    _ticks(panels[-1], learning.steps, "x")
    panels[-1].tick_params(axis="x", labelrotation=45)
    drawing.labels(panels[-1], "step of the snapshot", "layer.head")
    return drawn


def _range(score: str, values: Sequence[Sequence[Sequence[Sequence[float]]]]) -> tuple[float, float]:
    """The colours of a score that some models have: `values` of each, by snapshot, layer and head."""
    highest = max(float(np.max(of_model)) for of_model in values)
    return (-1.0, 1.0) if score == "copying" else (0.0, max(FULL, highest))


@pictured
def heads(width: float, learning: Learning, names: dict[str, str], ranges: Ranges) -> Figure:
    """The scores of the last weights alone, a map of layers and heads for each."""
    across = 2 if width == WIDE else 1
    down, tall = -(-len(names) // across), max(1.3, min(4.0, 0.14 * len(learning.ablation)))
    drawn, panels = drawing.figure(width, (tall + 0.7) * down, down, across)
    for axes, (name, title) in zip(panels, names.items(), strict=False):
        values = np.array(learning.scores[name][-1])
        _map(axes, values, title, *ranges[name])
        _ticks(axes, range(len(values)), "y")
        _ticks(axes, range(len(values[0])), "x")
        drawing.labels(axes, "head", "layer")
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    return drawn


@pictured
def over_steps(
    width: float, steps: Sequence[int], series: Mapping[str, Sequence[float | None]], label: str, log: bool
) -> Figure:
    """Lines over the snapshots."""
    drawn, (axes,) = drawing.figure(width, 3.0)
    for (name, values), colour in zip(series.items(), COLOURS * 9, strict=False):
        known = {number: value for number, value in enumerate(values) if value is not None}
        axes.plot(list(known), list(known.values()), "o-", color=colour, markersize=3, linewidth=1.2, label=name)
    if log:
        axes.set_yscale("log")
        most = max(value for values in series.values() for value in values if value is not None)
        axes.set_ylim(bottom=max(axes.get_ylim()[0], LEAST * most))
    _ticks(axes, list(steps), "x")
    axes.tick_params(axis="x", labelrotation=45)
    drawing.labels(axes, "step of the snapshot", label)
    drawing.legend(axes, 4 if width == WIDE else 2)
    return drawn


@pictured
def grid(
    width: float, values: Sequence[Sequence[float]], title: str, x: str, y: str, columns: Sequence[object] = ()
) -> Figure:
    """A matrix, its rows numbered, its columns too unless they have names."""
    rows = len(values)
    drawn, (axes,) = drawing.figure(width, max(1.4, min(6.0, 0.22 * rows + 1.0)))
    _map(axes, np.array(values), title)
    _ticks(axes, range(rows), "y")
    _ticks(axes, columns or range(len(values[0])), "x")
    drawing.labels(axes, x, y)
    return drawn


@pictured
def patterns(width: float, heads: Sequence[HeadPattern]) -> Figure:
    """Attention of each head: a row for each position, over the positions it takes from."""
    across = min(len(heads), 6 if width == WIDE else 3)
    down = -(-len(heads) // across)
    drawn, panels = drawing.figure(width, (width / across + 0.2) * down, down, across)
    for axes, head in zip(panels, heads, strict=False):
        axes.imshow(np.array(head.attention), cmap="viridis", interpolation="nearest", vmin=0, vmax=1)
        axes.set_title(f"{head.layer}.{head.head}", fontsize=8, color=INK, pad=2)
    for axes in panels:
        axes.grid(False)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
    for axes in panels[len(heads) :]:
        axes.set_visible(False)
    return drawn


@pictured
def parts(width: float, names: Sequence[str], values: Sequence[float], label: str) -> Figure:
    """What each part adds, the largest first."""
    drawn, (axes,) = drawing.figure(width, 0.8 + 0.24 * len(names))
    axes.barh(names, values, color=[BLUE if value > 0 else ORANGE for value in values], height=0.7)
    axes.invert_yaxis()
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.grid(False, axis="y")
    drawing.labels(axes, label, "")
    return drawn


@pictured
def spectrum(width: float, values: dict[str, Sequence[float]]) -> Figure:
    """The largest singular values of each matrix's update."""
    drawn, (axes,) = drawing.figure(width, 3.0)
    for (name, row), colour in zip(values.items(), COLOURS, strict=False):
        axes.plot(range(1, len(row) + 1), row, "o-", color=colour, markersize=3, linewidth=1.2, label=name)
    drawing.labels(axes, "singular value, the largest first", "over the largest of\nthe matrix before")
    axes.set_ylim(bottom=0)
    drawing.legend(axes, 4 if width == WIDE else 2)
    return drawn


@pictured
def wavelengths(width: float, stretching: Stretching) -> Figure:
    """How many positions each rotary pair takes for a full turn, beside both contexts."""
    drawn, (axes,) = drawing.figure(width, 3.0)
    for values, label, colour in (
        (stretching.wavelengths_before, "before", BLUE),
        (stretching.wavelengths_after, "after", ORANGE),
    ):
        axes.plot(values, "o-", color=colour, markersize=3.5, label=label)
    for context, colour in ((stretching.before, BLUE), (stretching.after, ORANGE)):
        axes.axhline(context, color=colour, linewidth=1, linestyle="--", label=f"context {context:,}")
    axes.set_yscale("log")
    drawing.labels(axes, "rotary pair", "positions in a full turn")
    drawing.legend(axes, 4 if width == WIDE else 2)
    return drawn


@pictured
def distances(width: float, stretching: Stretching) -> Figure:
    """Where attention goes by distance, all heads together, before and after."""
    drawn, (axes,) = drawing.figure(width, 3.0)
    ranges = [*pairwise(stretching.edges)]
    middles, widths = [(a + b - 1) / 2 for a, b in ranges], np.array([b - a for a, b in ranges])
    for values, label, colour in (
        (stretching.distance_before, "before", BLUE),
        (stretching.distance_after, "after", ORANGE),
    ):
        axes.plot(middles, np.array(values).mean((0, 1)) / widths, "o-", color=colour, markersize=3.5, label=label)
    axes.axvline(stretching.before, color=GREY, linewidth=1, linestyle="--", label="old context")
    axes.set_xscale("symlog")
    axes.set_xlim(left=-0.2)
    axes.set_yscale("log")
    drawing.labels(axes, "distance, tokens", "attention to\na position")
    drawing.legend(axes, 4 if width == WIDE else 2)
    return drawn
