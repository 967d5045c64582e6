"""Tables of figures, made once, and rendered as HTML, Markdown or text."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from model.evaluation.figures import average
from model.evaluation.published import ROWS, TASKS
from model.figures import ParityFigures, TaskFigures
from tasks.reports import html

NONE = "–"  # where a run has no such figure
Figures = TypeVar("Figures")


def percent(share: float | None, digits: int = 1) -> str:
    """A share in %, without the sign, which is in the column's head."""
    return "" if share is None else f"{100 * share:.{digits}f}"


@dataclass(frozen=True)
class Table:
    """Cells under their heads; the first `left` columns are words, the others numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    left: int = 1

    def html(self) -> str:
        return html.table(self.head, self.rows, self.left)

    def markdown(self) -> str:
        rows = [self.head, ["---"] * len(self.head), *self.rows]
        return "\n".join(f"| {' | '.join(map(html.shown, row))} |" for row in rows)

    def text(self) -> list[str]:
        """Lines with the columns two spaces apart."""
        cells = [[html.shown(cell) for cell in row] for row in (self.head, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return [
            "  ".join(
                cell.ljust(width) if number < self.left else cell.rjust(width)
                for number, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in cells
        ]


PARITY: dict[str, Callable[[ParityFigures], Any]] = {
    "KL divergence, nats": lambda p: f"{p.kl_divergence:.1e}",
    "beyond the old context": lambda p: "" if p.kl_divergence_beyond is None else f"{p.kl_divergence_beyond:.1e}",
    "limit": lambda p: f"{p.kl_limit:.0e}",
    "perplexity ratio": lambda p: f"{p.perplexity_ratio:.4f}",
    "largest |Δ log p|": lambda p: f"{p.max_logprob_difference:.2g}",
    "equal greedy tokens of 64": lambda p: p.greedy_equal,
    "answer ends by itself": lambda p: p.stopped,
}
TASK: dict[str, Callable[[TaskFigures], Any]] = {
    "accuracy, %": lambda t: percent(t.acc),
    "acc_norm, %": lambda t: percent(t.acc_norm),
    "accuracy, % ± SE": lambda t: f"{percent(t.quoted)} ± {percent(t.stderr)}",
    "± SE, %": lambda t: percent(t.stderr),
    "perplexity": lambda t: "" if t.perplexity is None else f"{t.perplexity:,.1f}" if t.perplexity < 1e6 else "> 1e6",
    "chance, %": lambda t: percent(t.chance),
    "longest choice, %": lambda t: percent(t.longest),
    "unigram frequency, %": lambda t: percent(t.unigram),
    "calibration error, %": lambda t: percent(t.calibration_error),
    "items": lambda t: t.n,
}


def of_each(
    what: str, figures: Mapping[str, Figures], columns: Mapping[str, Callable[[Figures], Any]], chosen: Iterable[str]
) -> Table:
    """A row for each of the `figures`, `what` they are by name, with the `chosen` of the `columns`."""
    names = list(chosen)
    return Table([what, *names], [[name, *(columns[c](of) for c in names)] for name, of in figures.items()])


def side_by_side(
    what: str,
    runs: Mapping[str, Mapping[str, Figures]],
    columns: Mapping[str, Callable[[Figures], Any]],
    chosen: Iterable[str],
) -> Table:
    """The `chosen` columns of several runs, each run's beside the other's; `runs` has their figures by run and name."""
    names = list(chosen)
    rows = dict.fromkeys(row for figures in runs.values() for row in figures)
    return Table(
        [what, *(f"{column}, {run}" for column in names for run in runs)],
        [[row, *(columns[c](of[row]) if row in of else NONE for c in names for of in runs.values())] for row in rows],
    )


def scored(tasks: Mapping[str, TaskFigures]) -> dict[str, TaskFigures]:
    """The tasks that have items."""
    return {name: figures for name, figures in tasks.items() if figures.n}


def beside_published(name: str, standard: Mapping[str, TaskFigures]) -> Table:
    """The standard tasks of the model `name` beside what was published of other models, in %."""
    tasks = scored(standard)
    rows = [
        [
            f"{task} {TASKS[task]}" + (f", perplexity {html.shown(f.perplexity)}" if f.perplexity else ""),
            percent(getattr(f, TASKS[task])),
            percent(f.stderr),
            f.n,
            *(percent(row.scores.get(task)) for row in ROWS),
        ]
        for task, f in tasks.items()
    ]
    chosen = [task for task, f in tasks.items() if f.perplexity is None]
    means = (
        sum(row.scores[task] for task in chosen) / len(chosen) if chosen and set(chosen) <= set(row.scores) else None
        for row in ROWS
    )
    rows.append(["mean of those with choices", percent(average(tasks)), "", "", *map(percent, means)])
    return Table(["%", name, "SE", "items", *(row.name for row in ROWS)], rows)
