"""report-against-B.html: two runs side by side."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from model.evaluation.figures import paired
from model.figures import (
    ConvertFigures,
    EvaluateFigures,
    ExtendFigures,
    LossByContext,
    PretrainFigures,
    SftFigures,
    TaskFigures,
)
from model.training.goodput import effective
from tasks.progress import clock
from tasks.reports import html, inspect_plots, plots
from tasks.reports.recorded import RecordedRun
from tasks.reports.tables import NONE, PARITY, TASK, Table, scored, side_by_side

Two = tuple[RecordedRun, RecordedRun]
RUN_IN_NAME = re.compile(r"/.*-(?=\w+\.gguf$)")  # in the name of a GGUF file


def compare(first: Path, second: Path) -> Path:
    """Write into the first run's folder a page that sets the second beside it, as far as both have got."""
    runs = RecordedRun(first), RecordedRun(second)
    names = [run.name for run in runs]
    parts = [
        f"<h1>{html.escaped(' and '.join(names))}</h1>",
        html.note(_common(runs)),
        html.table(["", *names], _facts(runs)),
        _differences(runs),
        _curves(runs),
        _inside(runs),
        _context(runs),
        _parity(runs),
        _evaluation(runs),
        _samples(runs),
        _cost(runs),
    ]
    return html.write(first / f"report-against-{second.name}.html", " and ".join(names), parts)


def _same_text(runs: Two) -> bool:
    """Did both learn from the same tokens, and are they scored on the same held-out text?"""
    mine, theirs = (run.corpus() for run in runs)
    return bool(mine) and mine == theirs


def _common(runs: Two) -> str:
    mine, theirs = (run.corpus() for run in runs)
    if not mine or not theirs:
        return "One of them has no text yet."
    if mine == theirs:
        return "Both learned from the same tokens, and the same text was held out."
    if mine["tokenizer.json"] == theirs["tokenizer.json"]:
        return "Same tokenizer, other text: what is measured on held-out text does not compare directly."
    return "Other text and another tokenizer: losses per token do not compare, and bits per byte are of other text."


def _facts(runs: Two) -> list[list[Any]]:
    """Rows that at least one of the runs has something for."""
    pretrain = [run.figures(PretrainFigures) for run in runs]
    sft = [run.figures(SftFigures) for run in runs]
    extend = [run.figures(ExtendFigures) for run in runs]
    scores = [run.figures(EvaluateFigures) for run in runs]
    times = [effective(run.folder / "pretrain") for run in runs]

    def row(label: str, form: str, values: Iterable[Any]) -> list[Any]:
        return [label, *(NONE if value is None else format(value, form) for value in values)]

    rows = [
        row("parameters", ",", (f and f.parameters for f in pretrain)),
        row("tokens trained on", ",", (f and f.tokens for f in pretrain)),
        row("steps", ",", (f and f.steps for f in pretrain)),
        row("held-out loss after pretraining, nats per token", ".4f", (f and f.heldout_loss for f in pretrain)),
        row("restarts", ",", (f and f.restarts for f in pretrain)),
        row("effective time of pretraining", ".1%", (time and time.share for time in times)),
        row("bits per byte, base model", ".4f", (f and f.bits_per_byte for f in scores)),
        row("bits per byte, final model", ".4f", (f and f.bits_per_byte_final for f in scores)),
        row("times xz -9", ".3f", (f and f.ratio_to_xz for f in scores)),
        row("tasks above chance", ",", (f and f.tasks_above_chance for f in scores)),
        row("share of answers that end by themselves, after SFT", ".3f", (f and f.ends_by_itself for f in sft)),
        row(
            "the same with the longer context",
            ".3f",
            (f and f.measured and f.measured.ends_by_itself for f in extend),
        ),
        row("context, tokens", ",", (f and f.context for f in extend)),
    ]
    return [one for one in rows if any(value != NONE for value in one[1:])]


def _differences(runs: Two) -> str:
    mine, theirs = (run.settings for run in runs)
    keys = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
    rows = [[key, *(_setting(run.settings.get(key)) for run in runs)] for key in keys]
    names = [run.name for run in runs]
    versions = _versions(runs)
    settings = html.table(["setting", *names], rows, left=3) or html.note("None: the two are set alike.")
    packages = html.heading("Versions that differ", 3) + html.table(["package", *names], versions, left=3)
    return html.heading("Settings that differ") + settings + (packages if versions else "")


def _setting(setting: Any) -> str:
    if setting in (None, "", [], {}):
        return NONE
    if isinstance(setting, dict):
        return ", ".join(f"{name}: {html.shown(value)}" for name, value in setting.items())
    return html.shown(setting)


def _versions(runs: Two) -> list[list[str]]:
    mine, theirs = (list(run.records.values())[-1]["versions"] if run.records else {} for run in runs)
    return [[name, mine[name], theirs[name]] for name in mine if name in theirs and mine[name] != theirs[name]]


def _curves(runs: Two) -> str:
    curves = [(run.metrics("pretrain"), run.name) for run in runs]
    if not all(metrics for metrics, _ in curves):
        return ""
    paces = {line.tokens / line.step for metrics, _ in curves for line in metrics.training}
    axes = ["step"] if len(paces) == 1 else ["step", "tokens"]
    caption = "Loss of each logged batch (thin) and of the held-out rows (dots)."
    picture = plots.against(dict.fromkeys(axes, curves))
    return html.heading("Pretraining") + html.figure(picture, caption)


def _inside(runs: Two) -> str:
    """How the heads of both learned, where both were looked into."""
    seen = [inspection for run in runs if (inspection := run.inspection())]
    if len(seen) < len(runs):
        return ""
    shown = ("induction", "previous", "duplicate", "copying")
    pictures = [
        html.heading(run.name, 3)
        + html.figure(inspect_plots.scores(one.learning, shown, [other.learning for other in seen]), "")
        for run, one in zip(runs, seen, strict=True)
    ]
    return html.heading("How their heads learned (koda inspect)") + html.beside(*pictures)


def _context(runs: Two) -> str:
    extended = {run.name: run.figures(ExtendFigures) for run in runs}
    losses = {name: f.measured.loss_by_method if f and f.measured else {} for name, f in extended.items()}
    columns: dict[str, Callable[[LossByContext], str]] = {
        "up to the old context": lambda loss: f"{loss.within:.3f}",
        "beyond": lambda loss: f"{loss.beyond:.3f}",
    }
    table = side_by_side("loss, nats per token", losses, columns, columns)
    return html.heading("Longer context (NTK)") + table.html() if table.rows else ""


def _parity(runs: Two) -> str:
    converted = {run.name: run.figures(ConvertFigures) for run in runs}
    parity = {
        name: {RUN_IN_NAME.sub("/", path): figures for path, figures in (f.parity if f else {}).items()}
        for name, f in converted.items()
    }
    table = side_by_side("export", parity, PARITY, ("KL divergence, nats", "perplexity ratio"))
    return html.heading("Exports against the JAX model") + table.html() if table.rows else ""


def _evaluation(runs: Two) -> str:
    scores = [run.figures(EvaluateFigures) for run in runs]
    names = [run.name for run in runs]
    sources = {name: f.bits_per_byte_by_source if f else {} for name, f in zip(names, scores, strict=True)}
    by_source = side_by_side("", sources, {"bits per byte": lambda bits: f"{bits:.4f}"}, ("bits per byte",))
    text = ""
    if by_source.rows:
        text += html.heading("Bits per byte by source, base model", 3) + by_source.html()
    homemade, standard = ([getattr(f, suite) if f else {} for f in scores] for suite in ("tasks", "standard"))
    text += _suite("Home-made tasks", runs, "homemade", homemade, _same_text(runs))
    text += _suite("Standard zero-shot tasks", runs, "standard", standard, _same_items(runs))
    return html.heading("Evaluation") + text if text else ""


def _same_items(runs: Two) -> bool:
    """Were the standard tasks of both read from the same place?"""
    mine, theirs = (run.records.get("evaluate", {}).get("settings", {}).get("evaluate", {}) for run in runs)
    return mine.get("standard") == theirs.get("standard")


def _suite(label: str, runs: Two, suite: str, scores: list[dict[str, TaskFigures]], same: bool) -> str:
    """A suite's tasks with a column for each run; where both had the same items, the test of the difference."""
    names = [run.name for run in runs]
    column = "accuracy, % ± SE"
    table = side_by_side("task", dict(zip(names, map(scored, scores), strict=True)), TASK, (column,))
    if not table.rows:
        return ""
    right = [(run.read("evaluate/right.json") or {}).get(suite, {}) for run in runs]
    tests = {
        task: paired(*answers)
        for task in {**scores[0], **scores[1]}
        if same and (answers := [one.get(task, []) for one in right])[0] and len(answers[0]) == len(answers[1])
    }
    caption = "SE: standard error. The two were not given the same items, so the difference is not tested item by item."
    if tests:
        caption = (
            "SE: standard error. Difference: the second less the first, on the same items; p: two-sided p-value (exact "
            "McNemar test)."
        )
        rows = [
            [*row, *((f"{100 * t.difference:+.1f} ± {100 * t.stderr:.1f}", f"{t.p:.3g}") if t else ("", ""))]
            for row in table.rows
            for t in [tests.get(row[0])]
        ]
        table = Table([*table.head, "difference, %", "p"], rows)
    return html.heading(label, 3) + table.html() + html.note(caption)


def _samples(runs: Two) -> str:
    scores = [run.figures(EvaluateFigures) for run in runs]
    texts = [{s.prompt: s.text for s in (f.samples if f else [])} for f in scores]
    pairs = "".join(
        html.beside(
            *(html.note(run.name) + html.sample(prompt, of[prompt]) for run, of in zip(runs, texts, strict=True))
        )
        for prompt in texts[0]
        if prompt in texts[1]
    )
    return html.heading("Samples, with the same beginnings and seeds") + pairs if pairs else ""


def _cost(runs: Two) -> str:
    seconds = [{stage: r["seconds"] for stage, r in run.records.items()} for run in runs]
    rows = [
        [stage, *(clock(one[stage]) if stage in one else NONE for one in seconds)]
        for stage in {**seconds[0], **seconds[1]}
    ]
    rows.append(["together", *(clock(sum(one.values())) for one in seconds)])
    return html.heading("Time") + html.table(["stage", *(run.name for run in runs)], rows)
