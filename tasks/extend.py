"""Stage 5: the same model with a longer context."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from model.config import LlamaConfig
from model.errors import KodaError
from model.figures import (
    AdaptationFigures,
    ContextFigures,
    CorpusFigures,
    ExtendFigures,
    SftFigures,
)
from model.files import read_json
from model.stretch import stretch
from model.training.records import JOB
from tasks.runs.record import Built
from tasks.section import OPERATIONAL
from tasks.stage import retried_call, stage
from tasks.training import TrainSection, run_training


class Extend(TrainSection):
    factor: Annotated[float, Field(ge=1)] = 2.0
    """How many times as long the context becomes; 1: the model goes on as it is."""
    method: Literal["ntk", "linear", "yarn"] = "ntk"
    """How: a larger rotary base (NTK-aware), which every program that runs the exports understands; position
    interpolation; or YaRN."""
    steps: NonNegativeInt = 0
    """Steps of training at the new length, on long documents and conversations; 0: the positions change, the weights
    do not."""
    batch_size: PositiveInt = 8
    """Rows in a step."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate; with muon by width, as in `pretrain`."""
    warmup_steps: NonNegativeInt = 10
    """Steps over which the rate rises to its peak."""
    decay_fraction: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Share of the steps, at the end, over which `wsd` falls to zero."""
    chat_share: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Share of the rows that are conversations, so that it goes on answering and stopping."""
    rows: PositiveInt = 64
    """Held-out rows of the new length in the measurement by position."""
    passkeys: PositiveInt = 10
    """Texts for each length and depth in which a pass key is hidden, to be recalled."""
    evaluate_every_steps: Annotated[int, Field(ge=1, json_schema_extra=OPERATIONAL)] = 50
    """A measurement of the held-out loss each so many steps."""
    answer_limit: PositiveInt = 100
    """Tokens within which an answer should end by itself, when that is measured."""

    def check_tokens(self, tokens: Built[CorpusFigures], context: int) -> None:
        longer, heldout = int(context * self.factor), tokens.figures.heldout_tokens
        if self.factor > 1 and heldout <= longer:
            raise KodaError(
                f"extend.factor = {self.factor:g}: the {heldout:,} held-out tokens are too few for one row of "
                f"{longer:,}, which the longer context is measured on. Use more text, a larger "
                "tokenize.heldout_fraction, or a smaller extend.factor (1: none)."
            )


@stage(version=5, resumes=True)
def extend(out: Path, settings: Extend, chat: Built[SftFigures], tokens: Built[CorpusFigures]) -> ExtendFigures:
    """Write weights/ with the longer context, and positions.json: held-out loss by position, and pass keys found."""
    log, final = out / "extend.log", out / "weights"
    adapts = bool(settings.steps) and settings.factor > 1
    start = out / "start" if adapts else final
    stretched = stretch(chat / "weights", start, settings.factor, settings.method)
    if settings.factor == 1:
        return ExtendFigures(**asdict(stretched))
    adapted = _adapt(out, settings, chat, tokens) if adapts else {}
    measured = retried_call(
        "model.evaluation.context:measure",
        log,
        ContextFigures,
        source=chat / "weights",
        final=final,
        out=out,
        tokens=tokens.folder,
        prompts=chat / "data/prompts.json",
        factor=settings.factor,
        method=settings.method,
        job=out / JOB if adapts else "",
        rows=settings.rows,
        items=settings.passkeys,
        answer_limit=settings.answer_limit,
    )
    return ExtendFigures(**asdict(stretched), **adapted, measured=measured)


def _adapt(out: Path, settings: Extend, chat: Built[SftFigures], tokens: Built[CorpusFigures]) -> dict[str, Any]:
    """Train on at the new length, by the same trainer as everything else."""
    old = read_json(chat / "weights/COMMIT.json")["config"]["max_position_embeddings"]
    shape = LlamaConfig(**read_json(out / "start/COMMIT.json")["config"])
    counts = retried_call(
        "model.data.adaptation:build",
        out / "extend.log",
        AdaptationFigures,
        out=out / "data",
        tokens=tokens.folder,
        conversations=chat / "data",
        old_context=old,
        context=shape.max_position_embeddings,
        rows=settings.steps * settings.batch_size,
        chat_share=settings.chat_share,
    )
    job = settings.job(
        shape,
        folder=str(out),
        train=str(out / "data"),
        heldout=str(tokens / "heldout"),
        end_of_text=tokens.figures.end_of_text,
        init=str(out / "start"),
    )
    trained = run_training("extend", job, [settings.steps], settings)
    return asdict(counts) | asdict(trained)
