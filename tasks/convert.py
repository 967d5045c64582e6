"""Stage 6: weights → exports for transformers, llama.cpp and MLX, each checked in its own runtime."""

import os
import tempfile
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from pydantic import field_validator

from model.config import LlamaConfig
from model.data import language
from model.data.sources import is_docs, is_hub
from model.errors import KodaError
from model.export.about import About as Statement
from model.export.formats import FORMATS
from model.export.formats.format import Export
from model.figures import ConvertFigures, CorpusFigures, ExtendFigures, ParityFigures, PretrainFigures, SftFigures
from model.files import read_json, write_json
from tasks.about import About
from tasks.progress import progress
from tasks.runs.record import Built, read_figures
from tasks.section import Section, one_of, weighted
from tasks.stage import stage
from tasks.supervise import Order, call_several

STATED = "about.json"  # beside the exports: what they state about themselves
# For each number of bits: the largest mean KL divergence from the JAX model in nats, and the largest ratio of the
# perplexities. About ten times what was measured on trained models (bench/README.md).
LIMITS: dict[int, tuple[float, float]] = {
    32: (1e-6, 1.0005),
    16: (1e-4, 1.005),
    8: (5e-3, 1.02),
    6: (2e-2, 1.05),
    5: (5e-2, 1.1),
    4: (0.2, 1.3),
    3: (0.5, 2.0),
}


class Convert(Section):
    formats: tuple[one_of(FORMATS), ...] = tuple(FORMATS)  # type: ignore[valid-type]  # made from the table
    """Which exports are written; MLX is made from the Hugging Face folder, and brings it along."""
    hf_dtype: one_of(FORMATS["hf"].variants) = "auto"  # type: ignore[valid-type]
    """Number type of the Hugging Face folder; auto: the one that the weights are stored in."""
    gguf: tuple[one_of(FORMATS["gguf"].variants), ...] = ("auto",)  # type: ignore[valid-type]
    """GGUF files, by llama.cpp's names of their types; those with a K are made by its own quantiser. auto: F16, Q8_0,
    and Q4_K_M where most rows are multiples of 256."""
    mlx: tuple[one_of(FORMATS["mlx"].variants), ...] = ("fp16", "8bit", "4bit")  # type: ignore[valid-type]
    """MLX folders; the quantised ones in groups of 64."""
    calibrate: bool = True
    """Fit K-quants (an importance matrix) and MLX's 4bit (rounded layer by layer, then learned scales) to a sample of
    the training text, where that takes minutes. On a CPU it does for models of 1.5 billion parameters, 220 million and
    60 million; on a GPU for 60, 8 and 2.4 billion. What does not, and all with false, is rounded to nearest."""
    limits: dict[int, tuple[float, float]] = LIMITS
    """What an export may differ by, by its bits: the mean KL divergence from the JAX model, in nats, and the ratio of
    the perplexities. {4 = [0.1, 1.2]} changes one of them and leaves the others. An export beyond its limit fails the
    stage."""

    @field_validator("limits")
    @classmethod
    def every_limit(cls, limits: dict[int, tuple[float, float]]) -> dict[int, tuple[float, float]]:
        for bits, (kl, perplexity) in limits.items():
            if bits not in LIMITS or kl <= 0 or perplexity <= 1:
                raise ValueError(
                    f"convert.limits: {bits} = [{kl}, {perplexity}]: limits are set for {', '.join(map(str, LIMITS))} "
                    "bits; a KL divergence above 0, and a ratio above 1."
                )
        return LIMITS | limits

    def limit(self, bits: int) -> tuple[float, float]:
        """The limits for an export of so many bits: those of the next larger number that has some."""
        return self.limits[min(known for known in self.limits if known >= bits)]

    def variants(self) -> dict[str, tuple[str, ...]]:
        """The variants of each format that is written, in the order of the table: the configured ones, and formats that
        these are made from. A format without a setting of its own is written in all its variants."""
        needed = {name for format_ in self.formats for name in (format_, *FORMATS[format_].needs)}
        chosen = {"hf": (self.hf_dtype,), "gguf": self.gguf, "mlx": self.mlx}
        variants = {name: chosen.get(name, tuple(FORMATS[name].variants)) for name in FORMATS if name in needed}
        return {name: some for name, some in variants.items() if some}

    def check_runtimes(self) -> None:
        """Raise KodaError where a runtime is not installed that an export will be opened in."""
        for name in self.variants():
            FORMATS[name].check_runtime()

    def misfit(self, shape: LlamaConfig) -> str:
        """Why the matrices of a model of this shape cannot be quantised so; empty where they can."""
        widths = {
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "num_attention_heads · head_dim": shape.num_attention_heads * shape.head_dim,
        }
        for name, variants in self.variants().items():
            for variant in variants:
                multiple = FORMATS[name].variants[variant].multiple
                for setting, width in widths.items():
                    if width % multiple:
                        return (
                            f"model.{setting} = {width} is not a multiple of {multiple}, which {name} {variant} needs."
                        )
        return ""


@stage(version=8)
def convert(
    out: Path,
    settings: Convert,
    about: About,
    model: Built[ExtendFigures],
    base: Built[SftFigures],
    tokens: Built[CorpusFigures],
) -> ConvertFigures:
    """Write the exports, reload each in its own runtime, and compare: parity.json. A disagreement fails."""
    settings.check_runtimes()  # before anything is written
    stated = statement(about, base, tokens)
    write_json(out / STATED, stated._asdict())
    parity = export(
        out,
        settings,
        weights=model / "weights",
        tokenizer=tokens / "tokenizer.json",
        heldout=tokens / "heldout",
        text=tokens / "train",
        trained=base / "weights",
        log=out / "convert.log",
        about=stated._asdict(),
    )
    return ConvertFigures(
        exports=len(parity),
        max_kl_divergence=max((figures.kl_divergence for figures in parity.values()), default=0.0),
        stopped=sum(figures.stopped for figures in parity.values()),
        parity=parity,
    )


def statement(about: About, taught: Built[SftFigures] | None, tokens: Built[CorpusFigures]) -> Statement:
    """What the exports of a run state about themselves. A model that was `taught` to answer here is said to be for
    that, and to be sampled as it was measured: greedily. None: it is one from before the sft stage."""
    run = tokens.folder.parent
    pretrain = read_figures(run, PretrainFigures)
    imported = pretrain is not None and bool(pretrain.imported)  # its text is not what the model learned from
    languages = about.language
    if not languages and not imported:
        languages = tuple(language.of_shards(tokens / "heldout", tokens / "tokenizer.json"))
    answers = taught is not None and taught.figures.steps > 0
    return Statement(
        name=run.name,
        author=about.author,
        license=about.license,
        url=about.url,
        datasets=tuple(sources(tokens)),
        languages=languages,
        base_model=about.base_model,
        finetune="Chat" if answers else "",
        temperature=0.0 if answers else None,
    )


def stated_languages(exports: Built[ConvertFigures]) -> list[str]:
    """The languages that a run's exports state; none in exports of an earlier version."""
    path = exports / STATED
    return read_json(path)["languages"] if path.is_file() else []


def export(
    out: Path,
    settings: Convert,
    *,
    weights: Path,
    tokenizer: Path,
    heldout: Path,
    text: Path | None,
    trained: Path,
    log: Path,
    about: dict[str, Any],
) -> dict[str, ParityFigures]:
    """Write the exports below `out`, compare each with the model in its own runtime, and write parity.json.

    `heldout` has the text that they are compared on, `text` the one that they are calibrated on, if any, `trained` the
    weights before the context was extended. Raises KodaError where an export disagrees.
    """
    variants = settings.variants()
    if not variants:
        write_json(out / "parity.json", {})
        return {}
    old = LlamaConfig(**read_json(trained / "COMMIT.json")["config"])
    together = fit_together(old.parameters, len(variants))
    with tempfile.TemporaryDirectory() as expected, progress("convert", 2) as watch:
        watch(0, "exports")
        writing: Order[list[Export]] = Order(
            "model.export.convert:write",
            list[Export],
            source=weights,
            tokenizer=tokenizer,
            out=out,
            about=about,
            variants=variants,
            text=text if settings.calibrate else None,
        )
        computing = Order(
            "model.export.expectation:compute",
            int,
            weights=weights,
            tokenizer=tokenizer,
            heldout=heldout,
            old_context=old.max_position_embeddings,
            out=expected,
        )
        written, _ = call_several([writing, computing], log, together)
        watch(1, "each in its own runtime")
        comparing: list[Order[dict[str, ParityFigures]]] = [
            Order(
                "model.export.parity:compare",
                dict[str, ParityFigures],
                format_=name,
                folder=out,
                limits={export.path: settings.limit(export.bits) for export in exports},
                expected=expected,
            )
            for name, exports in groupby(written, key=lambda export: export.format)
        ]
        parity = {path: figures for of in call_several(comparing, log, together) for path, figures in of.items()}
    write_json(out / "parity.json", {path: asdict(figures) for path, figures in parity.items()})
    verdict(parity)
    return parity


def fit_together(parameters: int, runtimes: int) -> bool:
    """Does a model fit into half of this machine's memory in so many runtimes at once? Each computes in float32, and
    has what it read beside it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 8 * parameters * runtimes <= memory / 2


def sources(tokens: Built[CorpusFigures]) -> list[str]:
    """The names of what a run's text was read from."""
    settings = read_json(tokens / "stage.json")["settings"]["tokenize"]
    named = weighted(settings["source"])
    return [name if is_docs(name) or is_hub(name) else Path(name).name for name in named]


def verdict(parity: dict[str, ParityFigures]) -> None:
    """Raises KodaError where an export failed, naming each with what is wrong and what first differs in it."""
    lines = [
        f"{path}: {'; '.join(figures.failed)}. {figures.first_difference}"
        for path, figures in parity.items()
        if figures.failed
    ]
    if lines:
        raise KodaError("exports that disagree with the JAX model are not published:\n" + "\n".join(lines))
