"""Stage 4: a model that continues text → one that answers, and stops."""

from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from model.config import LORA_TARGETS, LlamaConfig
from model.data import conversations, packing
from model.errors import KodaError
from model.figures import (
    CheckpointFigures,
    CorpusFigures,
    EndingFigures,
    FinetunedFigures,
    PackingFigures,
    SftFigures,
)
from model.files import link, read_json
from model.training.job import LoraRecipe
from model.training.records import JOB
from tasks.progress import log_line
from tasks.runs.record import Built
from tasks.section import OPERATIONAL, weighted
from tasks.stage import retried_call, stage
from tasks.training import TrainSection, run_training

# In a run: where `koda convert RUN/checkpoint --to hf --out runs/RUN/base` puts the model that the adapter belongs to.
BASE = "base/hf"


class Sft(TrainSection):
    source: str | dict[str, PositiveFloat] = "docs"
    """Conversations to learn from: `docs` (questions about the standard library); a file or folder of .jsonl (.gz,
    .zst) or .parquet, or a .json, with `messages`, ShareGPT's, Dolly's or Alpaca's columns, or OASST's trees;
    hub:USER/NAME[/CONFIG][@REVISION] of the same; or several, each with how often it is read:
    {docs = 1, "rows.jsonl" = 2}."""
    split: str = "train"
    """The split of a Hub data set."""
    language: str = ""
    """Of OASST's trees, only those in this language (`en`); empty: all."""
    bad_input: Literal["refuse", "skip"] = "refuse"
    """A row that is no conversation, or that has nothing to learn, ends the stage, or is left out and counted."""
    metadata: tuple[str, ...] = ()
    """Columns (or keys of a message) that are no part of a conversation, as `id`, `category` or `source` are not: they
    are left unread. Text in any other column that is no part of it either is bad input."""
    context: NonNegativeInt = 0
    """Tokens of a row, up to the model's context: a model with a long context learns short conversations in less memory
    and time. 0: the model's context."""
    too_long: Literal["skip", "truncate", "refuse"] = "skip"
    """A conversation longer than a row is left out, cut, or ends the stage; the first two are counted."""
    train_end: bool = True
    """Learn the token that ends an answer. Off, answers never end: to see what it is for."""
    text_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the rows that are text of `tokenize.source`: a model that was pretrained on it goes on writing it as
    well as before."""
    method: Literal["lora", "full"] = "lora"
    """Low-rank updates beside frozen weights, or all weights (which needs a smaller learning_rate, such as 2e-4)."""
    steps: NonNegativeInt = 150
    """Optimizer steps; 0: the model goes on as it is."""
    batch_size: PositiveInt = 8
    """Rows in a step; each has as many whole conversations as fit."""
    learning_rate: PositiveFloat = 4e-3
    """Peak learning rate; with muon and all weights by width, as in `pretrain`."""
    warmup_steps: PositiveInt = 10
    """Steps over which the rate rises to its peak."""
    lora_rank: PositiveInt = 16
    """Rank of the low-rank updates."""
    lora_alpha: PositiveFloat = 32
    """The updates are scaled by lora_alpha / lora_rank."""
    lora_targets: tuple[str, ...] = tuple(LORA_TARGETS)
    """The matrices that get an update, in PEFT's names."""
    heldout_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Share of the conversations that is never trained on."""
    evaluate_every_steps: Annotated[int, Field(ge=1, json_schema_extra=OPERATIONAL)] = 50
    """A measurement of the held-out loss each so many steps."""
    answer_limit: PositiveInt = 100
    """Tokens within which an answer should end by itself, when that is measured."""

    @field_validator("lora_targets")
    @classmethod
    def known_targets(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := set(targets) - set(LORA_TARGETS):
            raise ValueError(f"sft.lora_targets: {sorted(unknown)[0]!r} is not one of {', '.join(LORA_TARGETS)}.")
        return targets

    def lora(self) -> LoraRecipe | None:
        if self.method == "full":
            return None
        return LoraRecipe(rank=self.lora_rank, alpha=self.lora_alpha, targets=self.lora_targets)

    def row(self, context: int) -> int:
        """Tokens of a row, for a model of this context. Raises KodaError where it would be longer."""
        if self.context > context:
            raise KodaError(f"sft.context = {self.context}: the model's context is {context} tokens.")
        return self.context or context

    def check(self) -> None:
        for source in weighted(self.source):
            conversations.check(source)

    def check_tokens(self, tokens: Built[CorpusFigures], context: int) -> None:
        fitting = packing.Fitting(
            split=self.split,
            language=self.language,
            tokenizer=str(tokens / "tokenizer.json"),
            sequence_length=self.row(context),
            too_long=self.too_long,
            bad_input=self.bad_input,
            train_end=self.train_end,
            metadata=[*self.metadata],
        )
        packing.check(weighted(self.source), fitting)

    def fingerprint(self) -> str:
        return "\n".join(map(conversations.fingerprint, weighted(self.source)))


@stage(version=6, resumes=True)
def sft(out: Path, settings: Sft, base: Built[CheckpointFigures], tokens: Built[CorpusFigures]) -> SftFigures:
    """Conversations → weights/, and with LoRA adapter/ (PEFT), by the same trainer as pretraining."""
    shape = LlamaConfig(**read_json(base / "weights/COMMIT.json")["config"])
    row = settings.row(shape.max_position_embeddings)
    data, log = out / "data", out / "sft.log"
    for note in chain.from_iterable(map(conversations.passed_over, weighted(settings.source))):
        log_line(f"sft        {note}")
    counts = retried_call(
        "model.data.packing:pack",
        log,
        PackingFigures,
        out=data,
        source=weighted(settings.source),
        split=settings.split,
        language=settings.language,
        too_long=settings.too_long,
        bad_input=settings.bad_input,
        train_end=settings.train_end,
        metadata=[*settings.metadata],
        tokenizer=tokens / "tokenizer.json",
        sequence_length=row,
        heldout_fraction=settings.heldout_fraction,
        text=tokens / "train",
        text_share=settings.text_share,
    )
    if counts.unread:
        log_line(f"sft        not read: {', '.join(f'{name} ({rows:,})' for name, rows in counts.unread.items())}")
    prompts: dict[str, Any] = {
        "tokenizer": tokens / "tokenizer.json",
        "prompts": data / "prompts.json",
        "limit": settings.answer_limit,
    }
    if not settings.steps:
        link(base / "weights", out / "weights")
        ends = retried_call("model.evaluation.endings:measure", log, EndingFigures, model=base / "weights", **prompts)
        return SftFigures(**asdict(counts), **asdict(ends), ends_by_itself_before=ends.ends_by_itself)
    job = settings.job(
        shape,
        folder=str(out),
        train=str(data / "train"),
        heldout=str(data / "heldout"),
        end_of_text=tokens.figures.end_of_text,
        init=str(base / "weights"),
        lora=settings.lora(),
        row=row,
    )
    trained = run_training("sft", job, [settings.steps], settings)
    tuned = retried_call(
        "model.evaluation.finetuned:finish",
        log,
        FinetunedFigures,
        job=out / JOB,
        out=out,
        base=out.parent / BASE,
        **prompts,
    )
    return SftFigures(**asdict(counts), **(asdict(trained) | asdict(tuned)))
