"""report.html: what a run did, in one file that needs no network."""

from pathlib import Path
from typing import Any

from model.accelerators import accelerator
from model.evaluation.figures import average
from model.evaluation.published import ROWS, TASKS
from model.training.goodput import goodput, shares
from model.training.protocol import EVENTS, lines, restarts
from tasks import pages, plots
from tasks.pages import percent
from tasks.progress import clock
from tasks.recorded import TRAININGS, Recorded
from tasks.section import weighted

ROUTINE = ("life", "start", "resume", "saved", "spent", "done")  # events that say only that all went as it should


def report(folder: Path) -> Path:
    """Write report.html into a run's folder, from what its stages recorded; those that are not done are left out."""
    run = Recorded(folder)
    parts = [
        f"<h1>{pages.escaped(run.name)}</h1>",
        pages.note(_what(run)),
        pages.facts(_facts(run)),
        _setting(run),
        _pretraining(run),
        _chat(run),
        _context(run),
        _parity(run),
        _evaluation(run),
        _samples(run),
        _cost(run),
        _lineage(run),
        pages.heading("Configuration") + pages.folded("run.toml", f"<pre>{pages.escaped(run.configuration)}</pre>"),
    ]
    return pages.write(folder / "report.html", run.name, parts)


def _what(run: Recorded) -> str:
    corpus, trained = run.figures("tokenize"), run.figures("pretrain")
    if "imported" in trained:
        return f"Begun with {trained['imported']}: {trained['parameters']:,} parameters."
    if not corpus:
        return "Nothing is done yet."
    text = f"Trained from scratch on {corpus['documents']:,} documents"
    if trained:
        text += f": {trained['parameters']:,} parameters, {trained['tokens']:,} tokens"
    return text + "."


def _facts(run: Recorded) -> list[tuple[str, str]]:
    found = []
    if scores := run.figures("evaluate"):
        found += [
            (f"{scores['bits_per_byte']:.3f}", "bits per byte, held-out"),
            (f"{scores['ratio_to_xz']:.2f} ×", "of xz -9 on the same bytes"),
            (f"{scores['tasks_above_chance']} of {len(scores['tasks'])}", "tasks above chance by 2 standard errors"),
        ]
    if chat := run.figures("sft"):
        found.append((f"{100 * chat['ends_by_itself']:.0f} %", "answers that end by themselves"))
    if long := run.figures("extend"):
        found.append((f"{long['context']:,}", "tokens of context"))
    if spent := shares(goodput(run.folder / "pretrain")):
        found.append((f"{spent['training']:.1f} %", "of pretraining's time trained (goodput)"))
    return found


def _setting(run: Recorded) -> str:
    """What was trained, on what, and how."""
    of, corpus, trained = run.settings.get, run.figures("tokenize"), run.figures("pretrain")
    model: list[list[Any]] = [
        ["layers × width", f"{of('model.num_hidden_layers')} × {of('model.hidden_size')}"],
        ["query / key-value heads", f"{of('model.num_attention_heads')} / {of('model.num_key_value_heads')}"],
        ["SwiGLU width", of("model.intermediate_size")],
        ["context, tokens", of("model.max_position_embeddings")],
        ["rotary base", of("model.rope_theta")],
    ]
    if "parameters" in trained:
        model.insert(0, ["parameters", trained["parameters"]])
    data: list[list[Any]] = []
    if corpus:
        data = [
            ["documents", corpus["documents"]],
            ["tokens", corpus["train_tokens"]],
            ["held out, tokens", corpus["heldout_tokens"]],
            ["vocabulary", corpus["vocab_size"]],
            ["bytes in a token", corpus["bytes_per_token"]],
        ]
    how: list[list[Any]] = []
    sources = weighted(of("tokenize.source") or "")
    read = ", ".join(name if times == 1 else f"{name} ({times:g} times)" for name, times in sources.items())
    if "imported" not in trained:
        how = [
            ["steps × rows", f"{of('pretrain.steps'):,} × {of('pretrain.batch_size'):,}"],
            ["optimizer", of("pretrain.optimizer")],
            ["learning rate", f"{of('pretrain.learning_rate'):g}, {of('pretrain.schedule')}"],
            ["number type", of("pretrain.dtype")],
        ]
    if trained.get("tokens"):
        how.insert(1, ["tokens", trained["tokens"]])
        how.insert(2, ["tokens per parameter", trained["tokens"] / trained["parameters"]])
        if corpus:
            how.insert(3, ["times through the text", trained["tokens"] / corpus["train_tokens"]])
    columns: dict[str, list[list[Any]]] = {"Model": model, "Text": data, "Pretraining": how}
    named = (pages.heading(name, 3) + pages.table(["", ""], rows) for name, rows in columns.items() if rows)
    return pages.heading("What was trained") + pages.beside(*named) + pages.note(f"Text from: {read}" if corpus else "")


def _pretraining(run: Recorded) -> str:
    folder, metrics = run.folder / "pretrain", run.metrics("pretrain")
    if not any("loss" in line for line in metrics):
        return ""
    died = restarts(folder)
    picture = plots.training(metrics, died, run.speeds("pretrain"))
    caption = (
        "Loss of each logged batch and of the held-out rows; tokens per second by the clock, saves and evaluations "
        f"included. {_restarts(died)}"
    )
    spent = goodput(folder)
    rows = [[part, clock(seconds), f"{shares(spent)[part]:.1f}"] for part, seconds in spent.items()]
    return (
        pages.heading("Pretraining")
        + pages.figure(picture, caption)
        + (pages.heading("Where its time went", 3) + pages.table(["", "time", "%"], rows) if rows else "")
        + _events(folder)
    )


def _restarts(died: list[int]) -> str:
    if not died:
        return "No restarts."
    return f"Restarts, dashed, from step{'s' if len(died) > 1 else ''} {', '.join(f'{step:,}' for step in died)}."


def _events(folder: Path) -> str:
    """What happened to a training beside training."""
    found = [line for line in lines(folder / EVENTS) if line["event"] not in ROUTINE]
    rows = [[line["event"], line.get("cause", ""), line["step"]] for line in found]
    return pages.folded(f"Events ({len(rows)})", pages.table(["event", "cause", "step"], rows, left=2))


def _losses(run: Recorded, stage: str) -> str:
    """The loss curve of one of the shorter trainings."""
    metrics, folder = run.metrics(stage), run.folder / stage
    if not any("loss" in line for line in metrics):
        return ""
    died = restarts(folder)
    caption = f"Loss, {TRAININGS[stage]}: each logged batch, and the held-out rows. {_restarts(died)}"
    return pages.figure(plots.losses(metrics, died), caption) + _events(folder)


def _chat(run: Recorded) -> str:
    curve, figures = _losses(run, "sft"), run.figures("sft")
    ends = ""
    if figures:
        rows = [
            ["before fine-tuning", percent(figures["ends_by_itself_before"])],
            ["after", percent(figures["ends_by_itself"])],
        ]
        if "ends_by_itself" in (long := run.figures("extend")):
            rows.append(["with the longer context", percent(long["ends_by_itself"])])
        said = f"{figures['conversations']:,} conversations, and {figures['heldout_conversations']:,} held out."
        ends = (
            pages.note(said)
            + pages.heading(f"Answers that end by themselves, of {figures['asked']} held-out questions", 3)
            + pages.table(["", "%"], rows)
        )
    return pages.heading("Fine-tuning (SFT)") + curve + ends if curve or ends else ""


def _context(run: Recorded) -> str:
    figures, found = run.figures("extend"), run.read("extend/positions.json")
    if "loss" not in figures or found is None:
        return ""
    bases = f"{figures['old_rope_theta']:.6g} → {figures['rope_theta']:.6g}"
    caption = f"Held-out loss by position. Method {figures['method']}; rotary base {bases}."
    by_method = [[name, f"{loss['within']:.3f}", f"{loss['beyond']:.3f}"] for name, loss in figures["loss"].items()]
    depths = sorted({line["depth"] for line in found["passkeys"]})
    lengths = sorted({line["length"] for line in found["passkeys"]})
    told = {(line["length"], line["depth"]): line["found"] for line in found["passkeys"]}
    keys = [[f"{length:,}", *(percent(told[length, depth], 0) for depth in depths)] for length in lengths]
    return (
        pages.heading("Longer context (NTK)")
        + pages.figure(plots.positions(found), caption)
        + pages.table(["loss, nats per token", f"up to {found['old_context']:,}", "beyond"], by_method)
        + pages.heading("Pass keys told from nine others, % (chance 10)", 3)
        + pages.table(["tokens", *(f"at {100 * depth:.0f} % of the text" for depth in depths)], keys)
        + _losses(run, "extend")
    )


def _parity(run: Recorded) -> str:
    found = run.figures("convert").get("parity", {})
    rows = [
        [
            path,
            f"{p['kl_divergence']:.1e}",
            "" if p["kl_divergence_beyond"] is None else f"{p['kl_divergence_beyond']:.1e}",
            f"{p['limits']['kl']:.0e}",
            f"{p['perplexity_ratio']:.4f}",
            f"{p['max_logprob_difference']:.2g}",
            p["greedy_equal"],
            p["stopped"],
        ]
        for path, p in found.items()
    ]
    head = [
        "export",
        "KL divergence, nats",
        "beyond the old context",
        "limit",
        "perplexity ratio",
        "largest |Δ log p|",
        "equal greedy tokens of 64",
        "answer ends by itself",
    ]
    if not rows:
        return ""
    return (
        pages.heading("Exports against the JAX model, each in its own runtime")
        + pages.table(head, rows)
        + pages.note(
            "Token ids of hard strings, the chat template and the token that ends an answer are the same in all."
        )
    )


def _evaluation(run: Recorded) -> str:
    scores = run.figures("evaluate")
    if not scores:
        return ""
    bits = [
        ["base model", f"{scores['bits_per_byte']:.4f}"],
        ["final model", f"{scores['bits_per_byte_final']:.4f}"],
        ["xz -9", f"{scores['xz_bits_per_byte']:.4f}"],
    ]
    sources = [[name, f"{value:.4f}"] for name, value in scores.get("bits_per_byte_by_source", {}).items()]
    return (
        pages.heading("Evaluation")
        + pages.beside(
            pages.heading(f"Bits per byte, {scores['heldout_bytes']:,} held-out bytes", 3)
            + pages.table(["", ""], bits),
            pages.heading("The base model's by source", 3) + pages.table(["", ""], sources) if sources else "",
        )
        + _homemade(scores["tasks"])
        + _standard(run.name, scores.get("standard", {}))
    )


def _homemade(found: dict[str, Any]) -> str:
    asked = {name: f for name, f in found.items() if f["n"]}
    rows = [
        [
            name,
            percent(f["acc"]),
            percent(f["stderr"]),
            percent(f["chance"]),
            percent(f.get("longest")),
            percent(f.get("unigram")),
            percent(f.get("calibration_error")),
            f["n"],
        ]
        for name, f in asked.items()
    ]
    if not rows:
        return ""
    head = [
        "%",
        "accuracy",
        "standard error",
        "chance",
        "longest choice",
        "unigram frequency",
        "calibration error",
        "items",
    ]
    caption = (
        "Made from the run's own held-out text. Longest choice, unigram frequency: what length alone, or the most "
        "frequent tokens alone, would win. Calibration error: how far confidence is from accuracy (ECE, 10 bins)."
    )
    picture = pages.figure(plots.tasks(asked), caption)
    return pages.heading("Home-made tasks", 3) + picture + pages.table(head, rows)


def _standard(name: str, found: dict[str, Any]) -> str:
    """The standard tasks that were asked, beside what others published of them."""
    asked = {task: f for task, f in found.items() if f["n"]}
    if not asked:
        return ""
    rows = [
        [
            f"{task} {TASKS[task]}" + (f", perplexity {pages.shown(f['perplexity'])}" if f["perplexity"] else ""),
            percent(f[TASKS[task]]),
            percent(f["stderr"]),
            percent(f.get("calibration_error")),
            f["n"],
            *(percent(row.scores.get(task)) for row in ROWS),
        ]
        for task, f in asked.items()
    ]
    chosen = [task for task, f in asked.items() if f["perplexity"] is None]
    means = (
        sum(row.scores[task] for task in chosen) / len(chosen) if chosen and set(chosen) <= set(row.scores) else None
        for row in ROWS
    )
    rows.append(["mean of those with choices", percent(average(asked)), "", "", "", *map(percent, means)])
    head = ["%", name, "standard error", "calibration error", "items", *(row.name for row in ROWS)]
    sources = (f"{row.name}: {row.source or 'its model card'}" for row in ROWS if row.name != "chance")
    return (
        pages.heading("Standard zero-shot tasks beside published rows", 3)
        + pages.table(head, rows)
        + pages.note(f"Published in: {'; '.join(sources)}.")
    )


def _samples(run: Recorded) -> str:
    said = run.figures("evaluate").get("samples", [])
    shown = "".join(pages.sample(one["prompt"], one["text"]) for one in said)
    return (
        pages.heading("Samples")
        + pages.note("Fixed beginnings (bold) and fixed seeds, so that two runs can be read side by side.")
        + shown
        if shown
        else ""
    )


def _cost(run: Recorded) -> str:
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
    text = pages.heading("Cost") + pages.table(["stage", "took", "finished, UTC", "made"], rows)
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
    text += pages.table(head[:cut], [row[:cut] for row in hours])
    return text + (pages.note("At the usual price of an hour that `koda plan` takes, no quotation.") if priced else "")


def _price(run: Recorded, stage: str) -> str:
    count, kind = run.devices(stage) or (0, "")
    known = accelerator(kind)
    return f"{run.hours_up(stage) * count * known.dollars:,.2f}" if known else ""


def _lineage(run: Recorded) -> str:
    if not run.records:
        return ""
    keys = [
        [stage, r["key"][:16], ", ".join(f"{name} {key[:8]}" for name, key in r["reads"].items())]
        for stage, r in run.records.items()
    ]
    hashes = [[path, digest] for path, digest in run.corpus().items()]
    commits = [
        [source, commit]
        for stage in ("tokenize", "sft")
        for source, commit in run.figures(stage).get("commits", {}).items()
        if commit
    ]
    published = run.figures("publish").get("where")
    newest = list(run.records.values())[-1]["versions"]
    differ = {
        f"{name} ({stage})": version
        for stage, r in run.records.items()
        for name, version in r["versions"].items()
        if newest.get(name) != version
    }
    versions = [[name, version] for name, version in (newest | differ).items()]
    return (
        pages.heading("Lineage")
        + pages.note(
            "A stage's key stands for its settings, the keys of the stages it reads and the version of its code."
        )
        + pages.table(["stage", "key", "made of"], keys, left=3)
        + pages.note(f"Published: {published}" if published else "")
        + pages.table(["source", "commit"], commits, left=2)
        + pages.folded("SHA-256 of tokenizer and corpus", pages.table(["file", "SHA-256"], hashes, left=2))
        + pages.folded("Versions of Python and the packages", pages.table(["package", "version"], versions, left=2))
    )
