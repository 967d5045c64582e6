"""report.html: what a run did, in one file that needs no network."""

import html
from pathlib import Path
from typing import Any

from model.files import finished, read_json
from model.training.goodput import goodput, shares
from model.training.protocol import METRICS, lines, restarts
from tasks.plots import bars, curve, positions
from tasks.progress import clock
from tasks.run import RECORD, STAGES, Run

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --line: #d8dde4; --paper: #fff; --tint: #f4f6f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e9f0; --soft: #9aa6b5; --line: #343d4a; --paper: #14181e; --tint: #1c222b; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 60rem; }
h1 { font-size: 1.7rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p, figcaption { color: var(--soft); margin: .3rem 0; }
.facts { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1.2rem 0; padding: 0; list-style: none; }
.facts li { background: var(--tint); border-radius: .5rem; padding: .6rem .9rem; flex: 1 1 9rem; }
.facts b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.facts span { color: var(--soft); font-size: .85rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 500; font-size: .85rem; }
td.n, th.n { text-align: right; }
figure { margin: .8rem 0; color: var(--ink); } figure svg { width: 100%; height: auto; }
pre { background: var(--tint); padding: .8rem; border-radius: .5rem; white-space: pre-wrap; font-size: .85rem; }
"""


def report(run: Run) -> Path:
    """Write runs/<name>/report.html from what the stages recorded; stages that are not done are left out."""
    records = {
        stage: read_json(run.folder / stage / RECORD) for stage in STAGES if (run.folder / stage / RECORD).is_file()
    }
    done = {stage: record["figures"] for stage, record in records.items()}
    parts = [
        f"<h1>{html.escape(run.name)}</h1>",
        f"<p>{_what(done)}</p>",
        _facts(done),
        _training(run.folder, done),
        _chat(done),
        _context(run.folder, done),
        _parity(done),
        _tasks(done),
        _samples(done),
        _stages(records),
        f"<h2>Configuration</h2><pre>{html.escape((run.folder / 'run.toml').read_text(encoding='utf-8'))}</pre>",
    ]
    path = run.folder / "report.html"
    with finished(path) as file:
        file.write(
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(run.name)} · Koda</title><style>{STYLE}</style></head><body>\n"
            + "\n".join(filter(None, parts))
            + "\n</body></html>\n"
        )
    return path


def table(head: list[str], rows: list[list[Any]]) -> str:
    """An HTML table; cells that are numbers stand to the right."""

    def cell(value: Any, tag: str) -> str:
        number = isinstance(value, int | float)
        return f"<{tag}{' class=n' if number else ''}>{html.escape(_shown(value))}</{tag}>"

    numeric = [bool(rows) and isinstance(value, int | float) for value in (rows[0] if rows else head)]
    top = "".join(f"<th{' class=n' if n else ''}>{html.escape(h)}</th>" for h, n in zip(head, numeric, strict=True))
    body = "".join(f"<tr>{''.join(cell(value, 'td') for value in row)}</tr>" for row in rows)
    return f"<div class=wide><table><tr>{top}</tr>{body}</table></div>"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _what(done: dict[str, Any]) -> str:
    if "tokenize" not in done:
        return "Nothing is done yet."
    text = f"Trained from scratch on {done['tokenize']['documents']:,} documents"
    if "imported" in done.get("pretrain", {}):
        return f"Begun with {done['pretrain']['imported']}: {done['pretrain']['parameters']:,} parameters."
    if {"pretrain", "checkpoint"} <= done.keys():
        text += f": {done['checkpoint']['parameters']:,} parameters, {done['pretrain']['tokens']:,} tokens"
    return text + "."


def _facts(done: dict[str, Any]) -> str:
    found = []
    if "evaluate" in done:
        scores = done["evaluate"]
        found += [
            (f"{scores['bits_per_byte']:.3f}", "bits per byte, held-out"),
            (f"{scores['ratio_to_xz']:.2f} ×", "of xz -9 on the same bytes"),
            (f"{scores['tasks_above_chance']} of {len(scores['tasks'])}", "tasks above chance by 2 standard errors"),
        ]
    if "sft" in done:
        found.append((f"{100 * done['sft']['ends_by_itself']:.0f} %", "answers that end by themselves"))
    if "extend" in done:
        found.append((f"{done['extend']['context']:,}", "tokens of context"))
    return f"<ul class=facts>{''.join(f'<li><b>{value}</b><span>{label}</span></li>' for value, label in found)}</ul>"


def _training(folder: Path, done: dict[str, Any]) -> str:
    metrics = lines(folder / "pretrain" / METRICS)
    if not any("loss" in line for line in metrics):
        return ""
    caption = "Loss on training batches (thin) and on held-out rows (dots); grey lines mark restarts."
    plot = curve(metrics, restarts(folder / "pretrain"))
    spent = goodput(folder / "pretrain")
    rows = [[part, round(seconds, 1), round(shares(spent)[part], 1)] for part, seconds in spent.items()]
    where = f"<h2>Where pretraining's time went</h2>{table(['', 'seconds', '%'], rows)}" if rows else ""
    return f"<h2>Pretraining</h2><figure>{plot}<figcaption>{caption}</figcaption></figure>{where}"


def _chat(done: dict[str, Any]) -> str:
    if "sft" not in done:
        return ""
    figures = done["sft"]
    rows = [
        ["before fine-tuning", 100 * figures["ends_by_itself_before"]],
        ["after", 100 * figures["ends_by_itself"]],
    ]
    if "ends_by_itself" in done.get("extend", {}):
        rows.append(["with the longer context", 100 * done["extend"]["ends_by_itself"]])
    return f"<h2>Answers that end by themselves, of {figures['asked']} held-out questions</h2>" + table(["", "%"], rows)


def _context(folder: Path, done: dict[str, Any]) -> str:
    if "loss" not in done.get("extend", {}):
        return ""
    figures = done["extend"]
    found = read_json(folder / "extend/positions.json")
    bases = f"{figures['old_rope_theta']:.6g} → {figures['rope_theta']:.6g}"
    caption = f"Held-out loss by position. Method {figures['method']}; rotary base {bases}."
    losses = [[name, loss["within"], loss["beyond"]] for name, loss in figures["loss"].items()]
    depths = sorted({line["depth"] for line in found["passkeys"]})
    lengths = sorted({line["length"] for line in found["passkeys"]})
    shares = {(line["length"], line["depth"]): 100 * line["found"] for line in found["passkeys"]}
    keys = [[f"{length} tokens", *(shares[length, depth] for depth in depths)] for length in lengths]
    return (
        f"<h2>Context</h2><figure>{positions(found)}<figcaption>{caption}</figcaption></figure>"
        + table(["loss, nats per token", f"up to {found['old_context']}", "beyond"], losses)
        + "<h3>Pass keys told from nine others, % (chance 10)</h3>"
        + table(["", *(f"at {100 * depth:.0f} % of the text" for depth in depths)], keys)
    )


def _parity(done: dict[str, Any]) -> str:
    if "convert" not in done:
        return ""
    rows = [
        [
            path,
            p["kl_divergence"],
            "" if p["kl_divergence_beyond"] is None else p["kl_divergence_beyond"],
            p["limits"]["kl"],
            p["perplexity_ratio"],
            p["max_logprob_difference"],
            p["greedy_equal"],
            p["stopped"],
        ]
        for path, p in done["convert"]["parity"].items()
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
    words = (
        "<p>Token ids of 16 hard strings, the chat template and the token that ends an answer are the same in all.</p>"
    )
    return "<h2>Exports, each reloaded in its own runtime</h2>" + table(head, rows) + words


def _tasks(done: dict[str, Any]) -> str:
    if "evaluate" not in done:
        return ""
    tasks = {name: f for name, f in done["evaluate"]["tasks"].items() if f["n"]}
    rows = [[name, 100 * f["acc"], 100 * f["stderr"], 100 * f["chance"], f["n"]] for name, f in tasks.items()]
    head = ["task", "accuracy, %", "standard error", "chance, %", "items"]
    return f"<h2>Home-made tasks</h2><figure>{bars(tasks)}</figure>" + table(head, rows)


def _samples(done: dict[str, Any]) -> str:
    if "evaluate" not in done:
        return ""
    shown = (
        f"<pre><b>{html.escape(s['prompt'])}</b>{html.escape(s['text'])}</pre>" for s in done["evaluate"]["samples"]
    )
    return "<h2>Samples</h2>" + "".join(shown)


def _stages(records: dict[str, Any]) -> str:
    rows = [
        [
            stage,
            clock(r["seconds"]),
            r["finished"],
            r["key"][:12],
            f"{sum(o['size'] for o in r['outputs'].values()) / 1e6:.1f} MB",
        ]
        for stage, r in records.items()
    ]
    return "<h2>Stages</h2>" + table(["stage", "took", "finished", "key", "size"], rows)
