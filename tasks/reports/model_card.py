"""Model cards, made of the run's own figures."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from model.data import hub
from model.evaluation.published import ROWS
from model.export.formats.format import Format
from model.figures import (
    CheckpointFigures,
    ConvertFigures,
    CorpusFigures,
    EvaluateFigures,
    ExtendFigures,
    ParityFigures,
    PretrainFigures,
    SftFigures,
    TrainingFigures,
)
from model.files import read_json
from model.training.records import read_events, read_metrics, restarts
from tasks.about import About
from tasks.convert import sources, stated_languages
from tasks.reports.hub_results import model_index
from tasks.reports.recorded import TRAININGS
from tasks.reports.tables import PARITY, TASK, Table, beside_published, of_each, scored
from tasks.runs.record import Built, read_built, read_figures

QUESTION = "What does `os.path.join` do?"


def card(
    format_: Format,
    name: str,
    where: str,
    about: About,
    exports: Built[ConvertFigures],
    scores: Built[EvaluateFigures],
    model: Built[ExtendFigures],
    tokens: Built[CorpusFigures],
    new_version: str = "",
) -> str:
    """The README.md of one repository, which will lie at `where`. `new_version` is that of a newer model."""
    run = exports.folder.parent
    first, *_ = [*format_.exports(exports / format_.name), Path()]
    repository = where if "/" in where else f"USER/{name}{format_.suffix}"
    use = format_.usage.format(where=where, repository=repository, name=name, question=QUESTION, file=first.name)
    base, relation = _base(format_, where, about, run)
    shape = read_json(model / "weights/COMMIT.json")["config"]
    data = ModelCardData(
        language=[*about.language] or stated_languages(exports) or None,
        license=about.license,
        library_name=format_.library,
        tags=["koda"],
        pipeline_tag="text-generation",
        datasets=[hub.named(source).name for source in sources(tokens) if source.startswith(hub.PREFIX)] or None,
        base_model=base,
        base_model_relation=relation,
        new_version=new_version or None,
        model_name=name,
        eval_results=model_index(scores.figures),
    )
    text = f"""---
{data.to_yaml()}
---

# {name}

{_origin(run, about)}

## How to run it

{use}

## Architecture

A LLaMA-style decoder: grouped-query attention, SwiGLU, RMSNorm, rotary positions.

{Table(["", ""], [[f"`{k}`", str(v)] for k, v in shape.items()]).markdown()}

## Training

{_training(run, tokens)}

## Evaluation

{_evaluation(name, scores.figures)}

## These files against the model they were made of

{_parity(format_.name, exports.figures.parity)}

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


def _base(format_: Format, where: str, about: About, run: Path) -> tuple[str | None, str | None]:
    """The repository that this one was made of, and how, in the Hub's words."""
    if format_.suffix and "/" in where:
        return where.removesuffix(format_.suffix), "quantized"
    if not about.base_model:
        return None, None
    trainings = read_figures(run, SftFigures), read_figures(run, ExtendFigures)
    trained = any(figures.steps for figures in trainings if figures)
    return about.base_model, "finetune" if trained else "quantized" if format_.suffix else None


def _origin(run: Path, about: About) -> str:
    pretrain = read_figures(run, PretrainFigures)
    by = f" by {about.author}" if about.author else ""
    page = f" Its page: {about.url}." if about.url else ""
    if pretrain is not None and pretrain.imported:
        return f"`{pretrain.imported}`, made ready{by} with Koda: {parameters(run)} parameters.{page}"
    return f"A language model trained from scratch{by} with Koda: {parameters(run)} parameters.{page}"


def _training(run: Path, tokens: Built[CorpusFigures]) -> str:
    rows: list[list[Any]] = []
    for stage, label in TRAININGS.items():
        built = read_built(run, stage)
        if built is not None and built.figures.tokens:
            figures: TrainingFigures = built.figures
            rows.append([label, figures.tokens, figures.steps, str(figures.heldout_loss)])
    curve = "\n\n![Loss by step](curve.png)" if read_metrics(run / "pretrain") else ""
    sft = read_figures(run, SftFigures)
    ends = f"\n\nHeld-out questions whose answer ends by itself: {100 * sft.ends_by_itself:.0f} %." if sft else ""
    return Table(["", "tokens", "steps", "held-out loss, nats per token"], rows).markdown() + curve + ends


def _evaluation(name: str, figures: EvaluateFigures) -> str:
    text = f"""Bits per byte on held-out text, before fine-tuning: **{figures.bits_per_byte:.3f}**, which is
{figures.ratio_to_xz:.2f} times what `xz -9` needs for the same {figures.heldout_bytes:,} bytes."""
    if scored(figures.standard):
        sources = ", ".join(f"[{row.name}]({row.source})" for row in ROWS if row.source)
        text += f"""

Zero-shot, in %, as lm-evaluation-harness scores them, beside published figures ({sources}).

{beside_published(name, figures.standard).markdown()}"""
    homemade = of_each("task", scored(figures.tasks), TASK, ("accuracy, % ± SE", "chance, %", "items"))
    return f"""{text}

Tasks made from the run's own held-out text; no other model's figures compare with them. SE: standard error.

{homemade.markdown()}"""


def _parity(format_: str, parity: dict[str, ParityFigures]) -> str:
    mine = {path: figures for path, figures in parity.items() if path.split("/")[0] == format_}
    columns = ("KL divergence, nats", "perplexity ratio", "equal greedy tokens of 64")
    return (
        "Each opened in its own runtime and compared on held-out text.\n\n"
        + of_each("file", mine, PARITY, columns).markdown()
    )


def _data(about: About, tokens: Built[CorpusFigures]) -> str:
    figures = tokens.figures
    commits = [f" (commit `{commit}`)" for commit in figures.commits.values() if commit]
    read = ", ".join(f"`{source}`" for source in sources(tokens))
    return f"""{read}{"".join(commits)}: {figures.documents:,} documents, {figures.train_tokens:,} tokens of a
vocabulary of {figures.vocab_size:,}, and {figures.heldout_tokens:,} held out. Licence of the text:
{about.data_license or "not known; see where it came from"}."""


def parameters(run: Path) -> str:
    """How many parameters the run's model has, as a person writes it."""
    figures = read_figures(run, CheckpointFigures)
    return f"{figures.parameters:,}" if figures else "unknown"


def curve_picture(run: Path, path: Path) -> None:
    """The loss by step as a picture for the card; nothing where the run trained no base model."""
    from tasks.reports import drawing, plots  # here, as a command that is refused need not wait for Matplotlib

    if metrics := read_metrics(run / "pretrain"):
        drawing.save(plots.loss(metrics, restarts(read_events(run / "pretrain"))), path)
