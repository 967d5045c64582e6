"""report-against-B.html: two runs side by side."""

import re
from pathlib import Path
from typing import Any

from model.evaluation.figures import paired, quote
from model.training.goodput import goodput, shares
from tasks import pages, plots
from tasks.pages import percent
from tasks.progress import clock
from tasks.recorded import Recorded

Two = tuple[Recorded, Recorded]
NAMED = re.compile(r"/.*-(?=\w+\.gguf$)")  # the name of its run, in that of a file
NONE = "–"  # where one run has no such figure


def compare(first: Path, second: Path) -> Path:
    """Write into the first run's folder a page that sets the second beside it, as far as both have got."""
    runs = Recorded(first), Recorded(second)
    names = [run.name for run in runs]
    parts = [
        f"<h1>{pages.escaped(' and '.join(names))}</h1>",
        pages.note(_common(runs)),
        pages.table(["", *names], _facts(runs)),
        _differences(runs),
        _curves(runs),
        _context(runs),
        _parity(runs),
        _evaluation(runs),
        _samples(runs),
        _cost(runs),
    ]
    return pages.write(first / f"report-against-{second.name}.html", " and ".join(names), parts)


def _same_text(runs: Two) -> bool:
    """Did both learn from the same tokens, and are they asked about the same held-out text?"""
    mine, theirs = (run.corpus() for run in runs)
    return bool(mine) and mine == theirs


def _common(runs: Two) -> str:
    mine, theirs = (run.corpus() for run in runs)
    if not mine or not theirs:
        return "Not both have text yet."
    if mine == theirs:
        return "Both learned from the same tokens, and the same text was held out."
    if mine["tokenizer.json"] == theirs["tokenizer.json"]:
        return "Same tokenizer, other text: what is measured on held-out text does not compare directly."
    return "Other text and another tokenizer: losses per token do not compare, and bits per byte are of other text."


def _facts(runs: Two) -> list[list[Any]]:
    """Rows that at least one of the runs has something for."""

    def row(label: str, stage: str, name: str, form: str = ",") -> list[Any]:
        values = (run.figures(stage).get(name) for run in runs)
        return [label, *(NONE if value is None else format(value, form) for value in values)]

    rows = [
        row("parameters", "pretrain", "parameters"),
        row("tokens trained on", "pretrain", "tokens"),
        row("steps", "pretrain", "steps"),
        row("held-out loss after pretraining, nats per token", "pretrain", "heldout_loss", ".4f"),
        row("restarts", "pretrain", "restarts"),
        [
            "time that trained (goodput), %",
            *(f"{spent['training']:.1f}" if (spent := _spent(run)) else NONE for run in runs),
        ],
        row("bits per byte, base model", "evaluate", "bits_per_byte", ".4f"),
        row("bits per byte, final model", "evaluate", "bits_per_byte_final", ".4f"),
        row("times xz -9", "evaluate", "ratio_to_xz", ".3f"),
        row("tasks above chance", "evaluate", "tasks_above_chance"),
        row("share of answers that end by themselves, after SFT", "sft", "ends_by_itself", ".3f"),
        row("the same with the longer context", "extend", "ends_by_itself", ".3f"),
        row("context, tokens", "extend", "context"),
    ]
    return [one for one in rows if any(value != NONE for value in one[1:])]


def _spent(run: Recorded) -> dict[str, float]:
    return shares(goodput(run.folder / "pretrain"))


def _differences(runs: Two) -> str:
    mine, theirs = (run.settings for run in runs)
    keys = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
    rows = [[key, *(_said(run.settings.get(key)) for run in runs)] for key in keys]
    names = [run.name for run in runs]
    versions = _versions(runs)
    settings = pages.table(["setting", *names], rows, left=3) or pages.note("None: the two are set alike.")
    packages = pages.heading("Versions that differ", 3) + pages.table(["package", *names], versions, left=3)
    return pages.heading("Settings that differ") + settings + (packages if versions else "")


def _said(setting: Any) -> str:
    if setting in (None, "", [], {}):
        return NONE
    if isinstance(setting, dict):
        return ", ".join(f"{name}: {pages.shown(value)}" for name, value in setting.items())
    return pages.shown(setting)


def _versions(runs: Two) -> list[list[str]]:
    mine, theirs = (list(run.records.values())[-1]["versions"] if run.records else {} for run in runs)
    return [[name, mine[name], theirs[name]] for name in mine if name in theirs and mine[name] != theirs[name]]


def _curves(runs: Two) -> str:
    curves = [(run.metrics("pretrain"), run.name) for run in runs]
    if not all(any("loss" in line for line in metrics) for metrics, _ in curves):
        return ""
    paces = {line["tokens"] / line["step"] for metrics, _ in curves for line in metrics if "tokens" in line}
    axes = ["step"] if len(paces) == 1 else ["step", "tokens"]
    caption = "Loss of each logged batch (thin) and of the held-out rows (dots)."
    picture = plots.against(dict.fromkeys(axes, curves))
    return pages.heading("Pretraining") + pages.figure(picture, caption)


def _context(runs: Two) -> str:
    losses = [run.figures("extend").get("loss", {}) for run in runs]
    names = [run.name for run in runs]
    rows = [
        [
            method,
            *(
                f"{loss[method][part]:.3f}" if method in loss else NONE
                for part in ("within", "beyond")
                for loss in losses
            ),
        ]
        for method in {**losses[0], **losses[1]}
    ]
    head = [
        "loss, nats per token",
        *(f"{name}, {part}" for part in ("up to the old context", "beyond") for name in names),
    ]
    return pages.heading("Longer context (NTK)") + pages.table(head, rows) if rows else ""


def _parity(runs: Two) -> str:
    found = [{NAMED.sub("/", path): p for path, p in run.figures("convert").get("parity", {}).items()} for run in runs]
    rows = [
        [
            path,
            *(f"{one[path]['kl_divergence']:.1e}" if path in one else NONE for one in found),
            *(f"{one[path]['perplexity_ratio']:.4f}" if path in one else NONE for one in found),
        ]
        for path in {**found[0], **found[1]}
    ]
    head = ["export", *(f"{what}, {run.name}" for what in ("KL divergence, nats", "perplexity ratio") for run in runs)]
    return pages.heading("Exports against the JAX model") + pages.table(head, rows) if rows else ""


def _evaluation(runs: Two) -> str:
    scores = [run.figures("evaluate") for run in runs]
    sources = [one.get("bits_per_byte_by_source", {}) for one in scores]
    by_source = [
        [name, *(f"{one[name]:.4f}" if name in one else NONE for one in sources)]
        for name in {**sources[0], **sources[1]}
    ]
    names = [run.name for run in runs]
    text = ""
    if by_source:
        text += pages.heading("Bits per byte by source, base model", 3) + pages.table(["", *names], by_source)
    suites = {
        "Home-made tasks": ("homemade", "tasks", _same_text(runs)),
        "Standard zero-shot tasks": ("standard", "standard", _same_items(runs)),
    }
    for label, (suite, figures, same) in suites.items():
        text += _suite(label, runs, suite, [one.get(figures, {}) for one in scores], same)
    return pages.heading("Evaluation") + text if text else ""


def _same_items(runs: Two) -> bool:
    """Were the standard tasks of both read from the same place?"""
    mine, theirs = (run.records.get("evaluate", {}).get("settings", {}).get("evaluate", {}) for run in runs)
    return mine.get("standard") == theirs.get("standard")


def _suite(label: str, runs: Two, suite: str, scores: list[dict[str, Any]], same: bool) -> str:
    """A suite's tasks with a column for each run; where both were asked the same items, how sure the difference is."""
    right = [(run.read("evaluate/right.json") or {}).get(suite, {}) for run in runs]
    rows, tested = [], False
    for task in {**scores[0], **scores[1]}:
        row = [task, *(_score(one.get(task)) for one in scores), "", ""]
        answers = [one.get(task, []) for one in right]
        if same and answers[0] and len(answers[0]) == len(answers[1]):
            test = paired(*answers)
            row[-2:] = [f"{100 * test.difference:+.1f} ± {100 * test.stderr:.1f}", f"{test.p:.3g}"]
            tested = True
        rows.append(row)
    if all(row[1] == row[2] == NONE for row in rows):
        return ""
    head = ["%", *(f"{run.name} ± SE" for run in runs), "difference", "p"]
    caption = (
        "SE: standard error. Difference: the second less the first, on the same items; p: how often luck alone would "
        "part them so far (exact McNemar test)."
        if tested
        else "They were not asked the same items, so that the difference is not tested item by item."
    )
    cut = len(head) if tested else len(head) - 2
    return pages.heading(label, 3) + pages.table(head[:cut], [row[:cut] for row in rows]) + pages.note(caption)


def _score(figures: dict[str, Any] | None) -> str:
    return f"{percent(quote(figures))} ± {percent(figures['stderr'])}" if figures and figures["n"] else NONE


def _samples(runs: Two) -> str:
    said = [{s["prompt"]: s["text"] for s in run.figures("evaluate").get("samples", [])} for run in runs]
    shown = "".join(
        pages.beside(
            *(pages.note(run.name) + pages.sample(prompt, texts[prompt]) for run, texts in zip(runs, said, strict=True))
        )
        for prompt in said[0]
        if prompt in said[1]
    )
    return pages.heading("Samples, with the same beginnings and seeds") + shown if shown else ""


def _cost(runs: Two) -> str:
    seconds = [{stage: r["seconds"] for stage, r in run.records.items()} for run in runs]
    rows = [
        [stage, *(clock(one[stage]) if stage in one else NONE for one in seconds)]
        for stage in {**seconds[0], **seconds[1]}
    ]
    rows.append(["together", *(clock(sum(one.values())) for one in seconds)])
    return pages.heading("Time") + pages.table(["stage", *(run.name for run in runs)], rows)
