"""How plots are drawn: as SVG text, in colours that read on light and on dark paper, for a desk and for a phone."""

import io
import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from model.files import atomic_write

BLUE, ORANGE, GREEN, PURPLE, RED, GREY = "#3b82c4", "#e0832f", "#3f9d6b", "#9566c0", "#d8483a", "#8a94a3"
INK = "#123456"  # a placeholder for the page's own text colour
WIDE, NARROW = 8.0, 3.9  # inches, on a desk and on a phone: letters keep their size, and the plot has less room

P = ParamSpec("P")


def pictured(draw: Callable[Concatenate[float, P], Figure]) -> Callable[P, str]:
    """Draw for both widths, as SVG; the page's style shows one of them."""

    @wraps(draw)
    def picture(*args: P.args, **kwargs: P.kwargs) -> str:
        sizes = {"wide": WIDE, "narrow": NARROW}
        return "".join(svg(draw(width, *args, **kwargs), name) for name, width in sizes.items())

    return picture


def figure(width: float, height: float, rows: int = 1, columns: int = 1, **more: Any) -> tuple[Figure, list[Axes]]:
    """A figure of so many inches on a transparent ground, and its panels."""
    empty, grid = plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False, **more)
    empty.patch.set_alpha(0)
    for axes in grid.flat:
        axes.patch.set_alpha(0)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(GREY)
        axes.tick_params(which="both", colors=INK, labelsize=9)
        axes.grid(color=GREY, alpha=0.2)
        axes.set_axisbelow(True)
    return empty, list(grid.flat)


def svg(drawn: Figure, name: str) -> str:
    """A figure as SVG of the class `name`, in the page's own text colour."""
    buffer = io.StringIO()
    # the salt parts the names inside: a plot must not lean on one that is not shown
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        drawn.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(drawn)
    text = re.sub(r"(?s)^.*?(?=<svg)", "", buffer.getvalue()).replace(INK, "currentColor")
    text = re.sub(r' id="[A-Za-z0-9]+_\d+"', "", text)  # nothing refers to these, and each plot has the same ones
    return text.replace("<svg", f'<svg class="{name}" role="img"', 1)


def labels(axes: Axes, x: str, y: str) -> None:
    """What the axes are."""
    axes.set_xlabel(x, color=INK, fontsize=9)
    axes.set_ylabel(y, color=INK, fontsize=9)


def legend(axes: Axes, columns: int) -> None:
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


def counts(axis: Axis, ticks: int = 6) -> None:
    """Few ticks with short labels, so that they do not overlap."""

    def label(value: float, _: int) -> str:
        unit = next((unit for unit in (1e9, 1e6) if abs(value) >= unit), 1)
        return f"{value / unit:,.4g} {'B' if unit == 1e9 else 'M'}" if unit > 1 else f"{value:,.0f}"

    if axis.get_scale() == "log":
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_formatter(NullFormatter())
    else:
        axis.set_major_locator(MaxNLocator(ticks))
    axis.set_major_formatter(FuncFormatter(label))


def png(drawn: Figure) -> bytes:
    """A picture for pages that take no SVG, in grey ink that reads on light and dark."""
    buffer = io.BytesIO()
    for text in drawn.findobj(matplotlib.text.Text):
        if same_color(text.get_color(), INK):  # a legend's is given in numbers
            text.set_color(GREY)
    for axes in drawn.axes:
        axes.tick_params(colors=GREY)
    drawn.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    plt.close(drawn)
    return buffer.getvalue()


def save(drawn: Figure, path: Path) -> None:
    """Such a picture in a file."""
    with atomic_write(path, "wb") as file:
        file.write(png(drawn))
