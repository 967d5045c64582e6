"""Stage 4: a model that continues text → one that answers, and stops."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from model.config import LORA_TARGETS, LlamaConfig
from model.data import instructions
from model.files import read_json
from model.training.job import LoraRecipe
from tasks.run import Built
from tasks.stage import stage
from tasks.supervise import call
from tasks.train import TrainSection, run_training


class Sft(TrainSection):
    source: str = "docs"
    """Conversations to learn from: `docs` (questions about the standard library), or JSONL with Dolly's columns."""
    steps: PositiveInt = 150
    """Optimizer steps."""
    batch_size: PositiveInt = 8
    """Rows in a step; each holds as many whole conversations as fit."""
    learning_rate: PositiveFloat = 4e-3
    """Peak learning rate of the low-rank updates."""
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
    answer_limit: PositiveInt = 100
    """Tokens within which an answer should end by itself, when that is measured."""

    @field_validator("lora_targets")
    @classmethod
    def known_targets(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := set(targets) - set(LORA_TARGETS):
            raise ValueError(f"sft.lora_targets: {sorted(unknown)[0]!r} is not one of {', '.join(LORA_TARGETS)}.")
        return targets

    def fingerprint(self) -> str:
        return instructions.fingerprint(self.source)


@stage(version=1, resumes=True)
def sft(out: Path, settings: Sft, base: Built, tokens: Built) -> dict[str, Any]:
    """Conversations → adapter/ (PEFT) and weights/ (merged), by the same trainer as pretraining."""
    facts = read_json(base / "weights/COMMIT.json")
    data = out / "data"
    counts = call(
        "model.data.instructions:pack",
        out / "sft.log",
        out=data,
        source=settings.source,
        tokenizer=tokens / "tokenizer.json",
        sequence_length=facts["config"]["max_position_embeddings"],
        heldout_fraction=settings.heldout_fraction,
    )
    job = settings.job(
        LlamaConfig(**facts["config"]),
        folder=str(out),
        train=str(data / "train"),
        heldout=str(data / "heldout"),
        end_of_text=tokens.figures["end_of_text"],
        init=str(base / "weights"),
        lora=LoraRecipe(rank=settings.lora_rank, alpha=settings.lora_alpha, targets=settings.lora_targets),
    )
    trained = run_training("sft", job, [settings.steps], settings.hang_seconds)
    measured = call(
        "model.export.adapter:finish",
        out / "sft.log",
        job=out / "job.json",
        tokenizer=tokens / "tokenizer.json",
        prompts=data / "prompts.json",
        out=out,
        answer_limit=settings.answer_limit,
    )
    return {**counts, **trained, **measured}
