"""report.html: what a run did, in one file that needs no network."""

from pathlib import Path
from typing import Any

from model.accelerators import accelerator
from model.evaluation.published import ROWS
from model.figures import (
    ConvertFigures,
    CorpusFigures,
    EvaluateFigures,
    ExtendFigures,
    PretrainFigures,
    SftFigures,
    TaskFigures,
)
from model.training.goodput import effective, goodput, shares
from model.training.records import Event, EventRecord, restarts, shown
from tasks.forecast import in_words, read_forecast
from tasks.progress import clock, moment
from tasks.reports import html, plots
from tasks.reports.recorded import INSPECTED, TRAININGS, RecordedRun
from tasks.reports.tables import PARITY, TASK, beside_published, of_each, percent, scored
from tasks.runs.up_to_date import replaced_input
from tasks.section import weighted
from tasks.supervise import Death

# What would prevent a training's death from happening again.
REMEDIES: dict[str | None, str] = {
    Death.OUTSIDE: "whoever sent it: a scheduler's time limit, a machine that is taken back, a person",
    Death.MEMORY: "more memory, or less use of it: a smaller batch_size, a larger gradient_accumulation_steps",
    Death.HANG: "the kernel's log says whether a GPU does not answer; where its steps are slow, a larger hang_seconds",
    Death.DISK: "the kernel's log names the disk, file system or driver that does not answer; a larger hang_seconds",
    Death.SIGNAL: "another version of the driver or of JAX; the kernel's log tells faults of the hardware",
    Death.ERROR: "what its last line says",
    Death.STOPPED: "nothing: it was asked to stop, and saved",
    Death.ROLLED_BACK: "a smaller learning_rate, where it happens often",
}


def report(folder: Path) -> Path:
    """Write report.html into a run's folder, from what its stages recorded; those that are not done are left out."""
    run = RecordedRun(folder)
    parts = [
        f"<h1>{html.escaped(run.name)}</h1>",
        html.note(_what(run)),
        _stale(run),
        html.facts(_facts(run)),
        _inside(run),
        _setting(run),
        _pretraining(run),
        _chat(run),
        _context(run),
        _parity(run),
        _evaluation(run),
        _samples(run),
        _cost(run),
        _lineage(run),
        html.heading("Configuration") + html.folded("run.toml", f"<pre>{html.escaped(run.configuration)}</pre>"),
    ]
    return html.write(folder / "report.html", run.name, parts)


def _what(run: RecordedRun) -> str:
    corpus, trained = run.figures(CorpusFigures), run.figures(PretrainFigures)
    if trained and trained.imported:
        return f"Started from {trained.imported}: {trained.parameters:,} parameters."
    if not corpus:
        return "Nothing is done yet."
    text = f"Trained from scratch on {corpus.documents:,} documents"
    if trained:
        text += f": {trained.parameters:,} parameters, {trained.tokens:,} tokens"
    return text + "."


def _stale(run: RecordedRun) -> str:
    stale = [stage for stage in run.records if replaced_input(run.folder, stage)]
    return html.note(f"Stale, built from a result that was rebuilt since: {', '.join(stale)}.") if stale else ""


def _inside(run: RecordedRun) -> str:
    """The way to the page of `koda inspect`, where there is one."""
    if run.inspection() is None or not (run.folder / INSPECTED).is_file():
        return ""
    return f'<p>What is inside the model: <a href="{INSPECTED}">{INSPECTED}</a></p>'


def _facts(run: RecordedRun) -> list[tuple[str, str]]:
    facts = []
    if scores := run.figures(EvaluateFigures):
        facts += [
            (f"{scores.bits_per_byte:.3f}", "bits per byte, held-out"),
            (f"{scores.ratio_to_xz:.2f} ×", "of xz -9 on the same bytes"),
            (f"{scores.tasks_above_chance} of {len(scores.tasks)}", "tasks above chance by 2 standard errors"),
        ]
    if chat := run.figures(SftFigures):
        facts.append((f"{100 * chat.ends_by_itself:.0f} %", "answers that end by themselves"))
    if extended := run.figures(ExtendFigures):
        facts.append((f"{extended.context:,}", "tokens of context"))
    if time := effective(run.folder / "pretrain"):
        faulty = f"{100 * time.hourly_fault:.1f} % with a fault an hour"
        facts.append((f"{100 * time.share:.1f} %", f"effective time of pretraining; {faulty}"))
    return facts


def _setting(run: RecordedRun) -> str:
    """What was trained, on what, and how."""
    of, corpus, trained = run.settings.get, run.figures(CorpusFigures), run.figures(PretrainFigures)
    model: list[list[Any]] = [
        ["layers × width", f"{of('model.num_hidden_layers')} × {of('model.hidden_size')}"],
        ["query / key-value heads", f"{of('model.num_attention_heads')} / {of('model.num_key_value_heads')}"],
        ["SwiGLU width", of("model.intermediate_size")],
        ["context, tokens", of("model.max_position_embeddings")],
        ["rotary base", of("model.rope_theta")],
    ]
    if trained:
        model.insert(0, ["parameters", trained.parameters])
    data: list[list[Any]] = []
    if corpus:
        data = [
            ["documents", corpus.documents],
            ["tokens", corpus.train_tokens],
            ["held out, tokens", corpus.heldout_tokens],
            ["vocabulary", corpus.vocab_size],
            ["bytes in a token", corpus.bytes_per_token],
        ]
    how: list[list[Any]] = []
    sources = weighted(of("tokenize.source") or "")
    read = ", ".join(name if times == 1 else f"{name} ({times:g} times)" for name, times in sources.items())
    if not (trained and trained.imported):
        how = [
            ["steps × rows", f"{html.shown(of('pretrain.steps'))} × {html.shown(of('pretrain.batch_size'))}"],
            ["optimizer", of("pretrain.optimizer")],
            ["learning rate", f"{html.shown(of('pretrain.learning_rate'))}, {of('pretrain.schedule')}"],
            ["number type", of("pretrain.dtype")],
        ]
    if trained and trained.tokens:
        how.insert(1, ["tokens", trained.tokens])
        how.insert(2, ["tokens per parameter", trained.tokens / trained.parameters])
        if corpus:
            how.insert(3, ["times through the text", trained.tokens / corpus.train_tokens])
    columns: dict[str, list[list[Any]]] = {"Model": model, "Text": data, "Pretraining": how}
    titled = (html.heading(name, 3) + html.table(["", ""], rows) for name, rows in columns.items() if rows)
    return html.heading("What was trained") + html.beside(*titled) + html.note(f"Text from: {read}" if corpus else "")


def _pretraining(run: RecordedRun) -> str:
    metrics, events = run.metrics("pretrain"), run.events("pretrain")
    if not metrics:
        return ""
    picture = plots.training(metrics, restarts(events), run.speeds("pretrain"))
    caption = (
        "Loss of each logged batch and of the held-out rows; tokens per second by the clock, saves and evaluations "
        f"included. {_restarts(restarts(events))}"
    )
    spent = goodput(run.folder / "pretrain")
    rows = [[part, clock(seconds), f"{shares(spent)[part]:.1f}"] for part, seconds in spent.items()]
    return (
        html.heading("Pretraining")
        + html.note(_forecast(run))
        + html.figure(picture, caption)
        + (html.heading("Where its time went", 3) + html.table(["", "time", "%"], rows) if rows else "")
        + _events(events)
    )


def _forecast(run: RecordedRun) -> str:
    """What the ladder said before the first step, and what came of it."""
    expected, scores = read_forecast(run.folder / "pretrain"), run.figures(EvaluateFigures)
    if expected is None:
        return ""
    text = f"Forecast before the first step: {in_words(expected)}."
    if scores is None:
        return text
    f, reached = expected.forecast, scores.bits_per_byte
    inside = "inside" if f.low <= reached <= f.high else "outside"
    return f"{text} It reached {reached:.3f}: {100 * (reached / f.loss - 1):+.2f} %, {inside} the interval."


def _restarts(steps: list[int]) -> str:
    if not steps:
        return "No restarts."
    return f"Restarts, dashed, from step{'s' if len(steps) > 1 else ''} {', '.join(f'{step:,}' for step in steps)}."


def _events(events: list[EventRecord]) -> str:
    """What happened to a training beside training."""
    rows = [[record.event, record.cause, record.step] for record in shown(events)]
    return _deaths(events) + html.folded(f"Events ({len(rows)})", html.table(["event", "cause", "step"], rows, left=2))


def _deaths(events: list[EventRecord]) -> str:
    """What each restart is due to: the cause, the process's last words, and what would prevent it."""
    died = [record for record in events if record.event is Event.CRASH]
    rows = [
        [
            moment(record.time),
            record.cause,
            record.details.get("last_line", ""),
            REMEDIES.get(record.details.get("death"), ""),
            record.details.get("reached", record.step),
            record.step,
        ]
        for record in died
    ]
    head = ["when", "it", "its last line", "what would prevent it", "at step", "last save"]
    return html.folded(f"Deaths ({len(rows)})", html.table(head, rows, left=4))


def _losses(run: RecordedRun, stage: str) -> str:
    """The loss curve of one of the shorter trainings."""
    metrics, events = run.metrics(stage), run.events(stage)
    if not metrics:
        return ""
    steps = restarts(events)
    caption = f"Loss, {TRAININGS[stage]}: each logged batch, and the held-out rows. {_restarts(steps)}"
    return html.figure(plots.losses(metrics, steps), caption) + _events(events)


def _chat(run: RecordedRun) -> str:
    curve, figures, extended = _losses(run, "sft"), run.figures(SftFigures), run.figures(ExtendFigures)
    ends = ""
    if figures:
        rows = [
            ["before fine-tuning", percent(figures.ends_by_itself_before)],
            ["after", percent(figures.ends_by_itself)],
        ]
        if extended and extended.measured:
            rows.append(["with the longer context", percent(extended.measured.ends_by_itself)])
        text = f", {figures.text_rows:,} rows of text among them" if figures.text_rows else ""
        counts = f"{figures.conversations:,} conversations{text}, and {figures.heldout_conversations:,} held out."
        ends = (
            html.note(counts)
            + html.heading(f"Answers that end by themselves, of {figures.asked} held-out questions", 3)
            + html.table(["", "%"], rows)
        )
    return html.heading("Fine-tuning (SFT)") + curve + ends if curve or ends else ""


def _context(run: RecordedRun) -> str:
    figures, positions = run.figures(ExtendFigures), run.read("extend/positions.json")
    if figures is None or figures.measured is None or positions is None:
        return ""
    bases = f"{figures.old_rope_theta:.6g} → {figures.rope_theta:.6g}"
    caption = f"Held-out loss by position. Method {figures.method}; rotary base {bases}."
    losses = figures.measured.loss_by_method.items()
    by_method = [[name, f"{loss.within:.3f}", f"{loss.beyond:.3f}"] for name, loss in losses]
    depths = sorted({line["depth"] for line in positions["passkeys"]})
    lengths = sorted({line["length"] for line in positions["passkeys"]})
    shares_found = {(line["length"], line["depth"]): line["found"] for line in positions["passkeys"]}
    keys = [[f"{length:,}", *(percent(shares_found[length, depth], 0) for depth in depths)] for length in lengths]
    return (
        html.heading("Longer context (NTK)")
        + html.figure(plots.positions(positions), caption)
        + html.table(["loss, nats per token", f"up to {positions['old_context']:,}", "beyond"], by_method)
        + html.heading("Pass keys distinguished from nine others, % (chance 10)", 3)
        + html.table(["tokens", *(f"at {100 * depth:.0f} % of the text" for depth in depths)], keys)
        + _losses(run, "extend")
    )


def _parity(run: RecordedRun) -> str:
    figures = run.figures(ConvertFigures)
    if figures is None or not figures.parity:
        return ""
    return (
        html.heading("Exports against the JAX model, each in its own runtime")
        + of_each("export", figures.parity, PARITY, PARITY).html()
        + html.note(
            "Token ids of hard strings, the chat template and the token that ends an answer are the same in all."
        )
    )


def _evaluation(run: RecordedRun) -> str:
    scores = run.figures(EvaluateFigures)
    if scores is None:
        return ""
    bits = [
        ["base model", f"{scores.bits_per_byte:.4f}"],
        ["final model", f"{scores.bits_per_byte_final:.4f}"],
        ["xz -9", f"{scores.xz_bits_per_byte:.4f}"],
    ]
    sources = [[name, f"{value:.4f}"] for name, value in scores.bits_per_byte_by_source.items()]
    return (
        html.heading("Evaluation")
        + html.beside(
            html.heading(f"Bits per byte, {scores.heldout_bytes:,} held-out bytes", 3) + html.table(["", ""], bits),
            html.heading("The base model's by source", 3) + html.table(["", ""], sources) if sources else "",
        )
        + _homemade(scored(scores.tasks))
        + _standard(run.name, scored(scores.standard))
    )


def _homemade(tasks: dict[str, TaskFigures]) -> str:
    if not tasks:
        return ""
    caption = (
        "Made from the run's own held-out text. Longest choice, unigram frequency: the accuracy of choosing by length "
        "alone, or by the frequency of tokens alone. Calibration error: how far confidence is from accuracy (ECE, 10 "
        "bins)."
    )
    columns = [column for column in TASK if column not in ("acc_norm, %", "accuracy, % ± SE", "perplexity")]
    picture = html.figure(plots.tasks(tasks), caption)
    return html.heading("Home-made tasks", 3) + picture + of_each("task", tasks, TASK, columns).html()


def _standard(name: str, tasks: dict[str, TaskFigures]) -> str:
    """The standard tasks that were scored, beside what others published of them."""
    if not tasks:
        return ""
    sources = (f"{row.name}: {row.source or 'its model card'}" for row in ROWS if row.name != "chance")
    return (
        html.heading("Standard zero-shot tasks beside published rows", 3)
        + beside_published(name, tasks).html()
        + html.note(f"Published in: {'; '.join(sources)}.")
    )


def _samples(run: RecordedRun) -> str:
    scores = run.figures(EvaluateFigures)
    if scores is None or not scores.samples:
        return ""
    return (
        html.heading("Samples")
        + html.note("Fixed beginnings (bold) and fixed seeds, so that two runs can be read side by side.")
        + "".join(html.sample(sample.prompt, sample.text) for sample in scores.samples)
    )


def _cost(run: RecordedRun) -> str:
    rows = [
        [
            stage,
            clock(r["seconds"]),
            r["finished"][:16].replace("T", " "),
            f"{sum(o['size'] for o in r['outputs'].values()) / 1e6:,.1f} MB",
        ]
        for stage, r in run.records.items()
    ]
    if not rows:
        return ""
    rows.append(["together", clock(sum(r["seconds"] for r in run.records.values())), "", ""])
    text = html.heading("Cost") + html.table(["stage", "took", "finished, UTC", "made"], rows)
    hours = [
        [
            TRAININGS[stage],
            f"{devices[0]} × {devices[1]}",
            f"{run.hours_up(stage) * devices[0]:.3g}",
            _price(run, stage),
        ]
        for stage in TRAININGS
        if (devices := run.devices(stage))
    ]
    priced = any(row[-1] for row in hours)
    head = ["", "devices", "device hours", "about, $"]
    cut = len(head) if priced else len(head) - 1
    text += html.table(head[:cut], [row[:cut] for row in hours])
    return text + (
        html.note("At the usual price of an hour that `koda plan` assumes; not a quotation.") if priced else ""
    )


def _price(run: RecordedRun, stage: str) -> str:
    count, kind = run.devices(stage) or (0, "")
    known = accelerator(kind)
    return f"{run.hours_up(stage) * count * known.dollars:,.2f}" if known else ""


def _lineage(run: RecordedRun) -> str:
    if not run.records:
        return ""
    keys = [
        [stage, r["key"][:16], ", ".join(f"{name} {key[:8]}" for name, key in r["reads"].items())]
        for stage, r in run.records.items()
    ]
    hashes = [[path, digest] for path, digest in run.corpus().items()]
    commits = [
        [source, commit]
        for figures in (run.figures(CorpusFigures), run.figures(SftFigures))
        for source, commit in (figures.commits.items() if figures else ())
        if commit
    ]
    newest = list(run.records.values())[-1]["versions"]
    differ = {
        f"{name} ({stage})": version
        for stage, r in run.records.items()
        for name, version in r["versions"].items()
        if newest.get(name) != version
    }
    versions = [[name, version] for name, version in (newest | differ).items()]
    return (
        html.heading("Lineage")
        + html.note(
            "A stage's key is a hash of its settings, the keys of the stages it reads and the version of its code."
        )
        + html.table(["stage", "key", "made of"], keys, left=3)
        + html.note(f"Published: {run.published}" if run.published else "")
        + html.table(["source", "commit"], commits, left=2)
        + html.folded("SHA-256 of tokenizer and corpus", html.table(["file", "SHA-256"], hashes, left=2))
        + html.folded("Versions of Python and the packages", html.table(["package", "version"], versions, left=2))
    )
