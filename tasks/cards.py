"""Model cards, made of the run's own figures."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from model.data import hub
from model.evaluation.published import ROWS, TASKS
from model.files import read_json
from model.training.protocol import METRICS, lines, restarts
from tasks import plots
from tasks.about import About
from tasks.convert import sources
from tasks.recorded import TRAININGS
from tasks.run import Built, read_built

QUESTION = "What does `os.path.join` do?"
USE = {
    "hf": """```python
from transformers import pipeline

chat = pipeline("text-generation", "{where}")
question = [{{"role": "user", "content": "{question}"}}]
print(chat(question, max_new_tokens=100)[0]["generated_text"][-1]["content"])
```""",
    "gguf": """llama.cpp: `llama-cli --model {file} --prompt '{question}'`

Ollama, in the folder with the files: `ollama create {name} -f Modelfile`, then `ollama run {name}`. The template and
the token that ends an answer are in the `Modelfile`.

LM Studio: put the file into the folder that *My Models* shows, as `USER/{name}/{file}` (or `lms import {file}`); it is
then in the list under *Select a model to load*. The chat template and the end of an answer come with the file.""",
    "mlx": """mlx_lm, in the folder with the files: `mlx_lm.generate --model {file} --prompt '{question}'`

LM Studio on a Mac opens the same folder.""",
}
LIBRARY = {"hf": "transformers", "gguf": "gguf", "mlx": "mlx"}


def card(
    kind: str, name: str, where: str, about: About, exports: Built, scores: Built, model: Built, tokens: Built
) -> str:
    """The README.md of one repository, which will lie at `where`."""
    run = exports.folder.parent
    files = sorted(path.name for path in (exports / kind).glob("*.gguf" if kind == "gguf" else "*"))
    file = "8bit" if "8bit" in files else files[-1] if files else ""
    use = USE[kind].format(where=where, name=name, question=QUESTION, file=file)
    data = ModelCardData(
        language="en",
        license=about.license,
        library_name=LIBRARY[kind],
        tags=["koda"],
        pipeline_tag="text-generation",
        datasets=[hub.named(source).name for source in sources(tokens) if source.startswith(hub.PREFIX)] or None,
        base_model=where.removesuffix(f"-{kind.upper()}") if kind != "hf" and "/" in where else None,
        model_name=name,
        eval_results=_results(scores.figures),
    )
    text = f"""---
{data.to_yaml()}
---

# {name}

{_origin(run, name, about, tokens)}

## How to run it

{use}

## Architecture

A LLaMA-style decoder: grouped-query attention, SwiGLU, RMSNorm, rotary positions.

{_table(["", ""], [[f"`{k}`", v] for k, v in read_json(model / "weights/COMMIT.json")["config"].items()])}

## Training

{_training(run, tokens)}

## Evaluation

{_evaluation(name, scores.figures)}

## These files against the model they were made of

{_parity(kind, exports.figures["parity"])}

## Data

{_data(about, tokens)}

## Limits

It continues text of the kind it was trained on, and answers are often wrong. It has had no safety training.

## Lineage

`lineage.json` leads from these files back to the configuration of each stage, the hashes of tokenizer and corpus, and
the versions of the packages. `CHECKSUMS` holds the SHA-256 of each file; `sha256sum --check CHECKSUMS` or `koda verify
FOLDER` compares a copy with it.
"""
    return str(ModelCard(text))


def _origin(run: Path, name: str, about: About, tokens: Built) -> str:
    pretrain = read_built(run, "pretrain")
    by = f" by {about.author}" if about.author else ""
    page = f" Its page: {about.url}." if about.url else ""
    if pretrain is not None and "imported" in pretrain.figures:
        return f"`{pretrain.figures['imported']}`, made ready{by} with Koda: {parameters(run)} parameters.{page}"
    return f"A language model trained from scratch{by} with Koda: {parameters(run)} parameters.{page}"


def _training(run: Path, tokens: Built) -> str:
    rows: list[list[Any]] = []
    for stage, label in TRAININGS.items():
        built = read_built(run, stage)
        if built is not None and built.figures.get("tokens"):
            figures = built.figures
            rows.append([label, f"{figures['tokens']:,}", f"{figures['steps']:,}", figures["heldout_loss"]])
    curve = "\n\n![Loss by step](curve.png)" if (run / "pretrain" / METRICS).is_file() else ""
    sft = read_built(run, "sft")
    ends = (
        f"\n\nHeld-out questions whose answer ends by itself: {100 * sft.figures['ends_by_itself']:.0f} %."
        if sft
        else ""
    )
    return _table(["", "tokens", "steps", "held-out loss, nats per token"], rows) + curve + ends


def _evaluation(name: str, figures: dict[str, Any]) -> str:
    text = f"""Bits per byte on held-out text, before fine-tuning: **{figures["bits_per_byte"]:.3f}**, which is
{figures["ratio_to_xz"]:.2f} times what `xz -9` needs for the same {figures["heldout_bytes"]:,} bytes."""
    if standard := figures.get("standard"):
        scored = {task: f[TASKS[task]] for task, f in standard.items() if f["n"]}
        rows = [[f"**{name}**", *(_percent(scored.get(task)) for task in TASKS)]]
        rows += [
            [
                f"[{row.name}]({row.source})" if row.source else row.name,
                *(_percent(row.scores.get(task)) for task in TASKS),
            ]
            for row in ROWS
        ]
        counts = ", ".join(f"{task} {f['n']}" for task, f in standard.items())
        text += f"""

Zero-shot, in %, as lm-evaluation-harness scores them, beside published rows (items: {counts}).

{_table(["", *(f"{task} ({metric})" for task, metric in TASKS.items())], rows)}"""
    made = [
        [task, f"{100 * f['acc']:.1f} ± {100 * f['stderr']:.1f}", _percent(f["chance"]), f["n"]]
        for task, f in figures["tasks"].items()
        if f["n"]
    ]
    return f"""{text}

Tasks made from the run's own held-out text; no other model's figures compare with them.

{_table(["task", "accuracy, % ± standard error", "chance, %", "items"], made)}"""


def _parity(kind: str, parity: dict[str, Any]) -> str:
    rows = [
        [path, f"{p['kl_divergence']:.1e}", f"{p['perplexity_ratio']:.4f}", p["greedy_equal"]]
        for path, p in parity.items()
        if path.split("/")[0] == kind
    ]
    head = ["file", "KL divergence, nats", "perplexity, times the model's", "equal greedy tokens of 64"]
    return "Each opened in its own runtime and compared on held-out text.\n\n" + _table(head, rows)


def _data(about: About, tokens: Built) -> str:
    figures = tokens.figures
    commits = [f" (commit `{commit}`)" for commit in figures.get("commits", {}).values() if commit]
    read = ", ".join(f"`{source}`" for source in sources(tokens))
    return f"""{read}{"".join(commits)}: {figures["documents"]:,} documents, {figures["train_tokens"]:,} tokens of a
vocabulary of {figures["vocab_size"]:,}, and {figures["heldout_tokens"]:,} held out. Licence of the text:
{about.data_license or "not known; see where it came from"}."""


def _results(figures: dict[str, Any]) -> list[EvalResult]:
    """The figures in the form of the Hub's `model-index`."""
    suites = [("standard", figures.get("standard", {})), ("held-out text of the run", figures["tasks"])]
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Text generation",
            dataset_type=task if suite == "standard" else "koda-homemade",
            dataset_config=None if suite == "standard" else task,
            dataset_name=task if suite == "standard" else f"{task} ({suite})",
            metric_type=TASKS.get(task, "acc") if suite == "standard" else "acc",
            metric_value=f[TASKS.get(task, "acc") if suite == "standard" else "acc"],
        )
        for suite, tasks in suites
        for task, f in tasks.items()
        if f["n"]
    ]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _table(head: list[str], rows: list[list[Any]]) -> str:
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in ([head, ["---"] * len(head), *rows]))


def parameters(run: Path) -> str:
    """How many parameters the run's model has, as a person writes it."""
    built = read_built(run, "checkpoint")
    return f"{built.figures['parameters']:,}" if built else "unknown"


def curve_picture(run: Path, path: Path) -> None:
    """The loss by step as a picture for the card; nothing where the run trained no base model."""
    metrics = lines(run / "pretrain" / METRICS)
    if any("loss" in line for line in metrics):
        plots.save(plots.loss(metrics, restarts(run / "pretrain")), path)
