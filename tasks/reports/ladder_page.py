"""ladder/index.html: the trainings of a ladder, the law that fits them, and what it says."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from model.ladder.figures import Forecasted, Ladder, Training
from model.ladder.law import Law
from model.training.job import Job
from tasks.forecast import LADDER, finished_ladder, forecasted, in_words
from tasks.reports import drawing, html
from tasks.reports.drawing import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, pictured

PAGE = "index.html"  # in the ladder's folder
BUDGETS = (0.1, 1.0, 10.0, 100.0)  # times the run's compute
COLOURS = (BLUE, GREEN, PURPLE, ORANGE)  # of the rungs


def page(run: Path, ladder: Ladder, job: Job) -> Path:
    """Write the page of a run's ladder; `job` is the run's own pretraining. Returns its path."""
    expected = forecasted(ladder, run.name, job, ladder.text)
    law = ladder.law
    terms = f"{law.a:.3g} / N^{law.alpha:.3f} + {law.b:.3g} / D^{law.beta:.3f}"
    equation = f"L(N, D) = {law.floor:.3f} + ({terms})^{law.gamma:.3f} bits per byte"
    parts = [
        f"<h1>{html.escaped(run.name)}: ladder</h1>",
        html.note(f"This run is expected to reach {in_words(expected)}."),
        html.heading("The law"),
        html.note(
            f"{equation}. N is the floating-point operations of a training step per token, over 6, so that 6 · N · D "
            "is a training's compute; D the tokens it reads. Fitted by Cauchy's loss to the trainings below; with an "
            "outer exponent of 1 it would be the form of Hoffmann et al. 2022. The interval is by resampled residuals, "
            "and at least as wide as the law was wrong about a size's longest training when it was fitted to the "
            "others, for as much more compute."
        ),
        html.figure(
            _curves(ladder, expected),
            "Held-out bits per byte of each training (points) by the tokens it read, the law (lines), and the forecast "
            f"with its interval (cross). Largest difference between a training and the law: {_worst(ladder):.2%}.",
        ),
        _trainings(ladder),
        _rates(ladder),
        _budgets(law, expected),
    ]
    return html.write(run / LADDER / PAGE, f"{run.name}: ladder", parts)


def as_lines(run: Path) -> list[str]:
    """A finished ladder as a person reads it in a terminal."""
    ladder = finished_ladder(run)
    law = ladder.law
    lines = ["", f"{run.name}: {len(ladder.trainings)} trainings of {len({t.rung for t in ladder.trainings})} sizes"]
    lines += [
        f"  {each.rung:<10} {each.tokens:>14,} tokens  {each.bits_per_byte:.4f} bits per byte, by the law "
        f"{law(each.n, each.tokens):.4f}"
        for each in ladder.trainings
    ]
    lines.append(f"  best rates {', '.join(f'{rung} {best:g}' for rung, best in best_rates(ladder))}")
    lines.append(f"  page       {run / LADDER / PAGE}")
    lines.append(
        f"  forecast   the next training of this run has one; others: koda plan --ladder {run.name} --preset …"
    )
    return lines


def best_rates(ladder: Ladder) -> Iterator[tuple[str, float]]:
    """The rate that was best at each size, of those that were tried with its shortest training."""
    for rung, tried in _tried(ladder):
        yield rung, min(tried, key=lambda each: each.bits_per_byte).learning_rate


def _tried(ladder: Ladder) -> Iterator[tuple[str, list[Training]]]:
    """The trainings of one length at several rates, by rung, ascending by rate."""
    for rung, others in groupby(ladder.rates, key=lambda each: each.rung):
        tried = list(others)
        same = [each for each in ladder.trainings if each.rung == rung and each.steps == tried[0].steps]
        yield rung, sorted([*tried, *same], key=lambda each: each.learning_rate)


def _worst(ladder: Ladder) -> float:
    return max(abs(t.bits_per_byte / ladder.law(t.n, t.tokens) - 1) for t in ladder.trainings)


@pictured
def _curves(width: float, ladder: Ladder, expected: Forecasted) -> Figure:
    figure, (axes,) = drawing.figure(width, 3.6)
    for colour, (rung, group) in zip(COLOURS, groupby(ladder.trainings, key=lambda each: each.rung), strict=False):
        trainings = list(group)
        tokens = [each.tokens for each in trainings]
        axes.plot(tokens, [each.bits_per_byte for each in trainings], "o", color=colour, markersize=4, label=rung)
        along = np.geomspace(min(tokens), max(tokens), 40)
        axes.plot(along, [ladder.law(trainings[0].n, each) for each in along], color=colour, linewidth=1.2)
    f = expected.forecast
    along = np.geomspace(min(each.tokens for each in ladder.trainings), expected.tokens, 40)
    axes.plot(along, [ladder.law(expected.n, each) for each in along], color=GREY, linewidth=1, linestyle=":")
    axes.errorbar(
        [expected.tokens], [f.loss], [[f.loss - f.low], [f.high - f.loss]], color=RED, marker="x", label="this run"
    )
    axes.set_xscale("log")
    drawing.counts(axes.xaxis)
    drawing.labels(axes, "tokens", "bits per byte")
    drawing.legend(axes, 3)
    return figure


def _trainings(ladder: Ladder) -> str:
    head = ["layers x width", "N", "steps", "tokens", "bits per byte", "by the law", "difference, %"]
    rows = []
    for t in ladder.trainings:
        law = ladder.law(t.n, t.tokens)
        off = f"{100 * (t.bits_per_byte / law - 1):+.2f}"
        rows.append([t.rung, f"{t.n:.3g}", t.steps, t.tokens, f"{t.bits_per_byte:.4f}", f"{law:.4f}", off])
    compute = f"All trainings together took {ladder.flops:.3g} floating-point operations."
    return html.heading("The trainings") + html.note(compute) + html.table(head, rows)


def _rates(ladder: Ladder) -> str:
    rows = [
        [rung, each.steps, f"{each.learning_rate:g}", f"{each.bits_per_byte:.4f}"]
        for rung, tried in _tried(ladder)
        for each in tried
    ]
    said = (
        "The shortest training of each size at half the rate, the rate, and twice the rate. Where the best one moves "
        "with the size, what was tuned small does not hold large."
    )
    return (
        html.heading("Rates") + html.note(said) + html.table(["layers x width", "steps", "rate", "bits per byte"], rows)
    )


def _budgets(law: Law, expected: Forecasted) -> str:
    """The best size for more and less compute than the run's."""
    run = 6 * expected.n * expected.tokens
    rows = [
        [f"{times:g}", f"{times * run:.3g}", f"{n:.3g}", f"{tokens:.3g}", f"{tokens / n:.3g}", f"{law(n, tokens):.3f}"]
        for times in BUDGETS
        if (best := law.best(times * run))
        for n, tokens in [best]
    ]
    if not rows:
        return html.note(
            "There is no best size for a budget: the trainings show no effect of the size, or of the text."
        )
    head = ["times this run's compute", "FLOP", "best N", "tokens", "tokens for each of N", "bits per byte"]
    said = (
        f"Where compute is spent best by the law. This run: N {expected.n:.3g}, {expected.tokens:,} tokens, "
        f"{expected.tokens / expected.n:.3g} for each of N. Far from the trainings above, a direction and not a figure."
    )
    return html.heading("The best size for a budget") + html.note(said) + html.table(head, rows)
