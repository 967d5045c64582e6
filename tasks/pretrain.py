"""Stage 2: token shards → a trained checkpoint, in segments that are restarted until they are done."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from model.config import LlamaConfig
from model.figures import CorpusFigures, PretrainFigures
from model.training.job import Job
from tasks.forecast import expect, finished_ladder
from tasks.progress import log_line
from tasks.runs.paths import existing
from tasks.runs.record import Built
from tasks.section import ADDED, OPERATIONAL, Section
from tasks.stage import retried_call, stage
from tasks.training import TrainSection, run_training

# Times that text is read before repeating it is worth clearly less (Muennighoff et al. 2023, arXiv:2305.16264), and
# with dropout (docs/text.md).
READINGS, WITH_DROPOUT = 4, 6


class Model(Section):
    """The network's shape, in transformers' names; the vocabulary's size is the tokenizer's."""

    hidden_size: PositiveInt = 192
    """Width of the stream that the layers read and write. A multiple of 256 suits every quantised export."""
    num_hidden_layers: PositiveInt = 4
    """How many blocks of attention and feed-forward."""
    num_attention_heads: PositiveInt = 6
    """Query heads; they share hidden_size among them."""
    num_key_value_heads: PositiveInt = 3
    """Key/value heads; each serves an equal number of query heads (grouped-query attention)."""
    head_dim: NonNegativeInt = 0
    """Size of every head; 0: hidden_size / num_attention_heads."""
    intermediate_size: PositiveInt = 512
    """Inner width of the SwiGLU feed-forward."""
    max_position_embeddings: Annotated[int, Field(ge=16)] = 128
    """Context: tokens in a training row, and how far the base model can look back."""
    rope_theta: PositiveFloat = 10000.0
    """Base of the rotary frequencies."""
    rms_norm_eps: PositiveFloat = 1e-5
    """Added under the root in every norm."""
    tie_word_embeddings: bool = True
    """Read tokens in and out with the same matrix: for small models, whose vocabulary would be most of them."""
    qk_norm: bool = False
    """A norm on every query and key, which bounds attention's scores. The exports cannot carry it: for models that
    stay in Koda (convert.formats = [])."""
    weights: Annotated[str, Field(json_schema_extra=OPERATIONAL)] = ""
    """A folder with a LlamaForCausalLM, or a .gguf file, that the run begins with, in place of training one; `koda
    import` sets it."""
    weights_sha256: Annotated[str, Field(json_schema_extra=OPERATIONAL)] = ""
    """The hashes of its files: these, and not where it lies, decide what is built on it."""

    def fingerprint(self) -> str:
        return self.weights_sha256

    @model_validator(mode="after")
    def buildable(self) -> "Model":
        self.llama(vocab_size=1)
        return self

    def llama(self, vocab_size: int) -> LlamaConfig:
        return LlamaConfig(vocab_size=vocab_size, **self.model_dump(exclude={"weights", "weights_sha256"}))


class Pretrain(TrainSection):
    steps: PositiveInt = 2000
    """Optimizer steps. Tokens seen = steps × batch_size × model.max_position_embeddings."""
    segments: Annotated[int, Field(ge=1, json_schema_extra=OPERATIONAL)] = 2
    """Task runs that the steps are cut into. Half an hour or more each, and the restarts are lost in the noise."""
    decay_fraction: Annotated[float, Field(ge=0, le=1)] = 0.6
    """Share of the steps, at the end, over which `wsd` falls to zero."""
    isolate_documents: bool = False
    """Attention does not cross from one document of a row into the next."""
    snapshots: Annotated[int, Field(ge=0, json_schema_extra=OPERATIONAL)] = 24
    """How many times the weights are kept along the training, for `koda inspect`, in bfloat16: at steps 0, 1, 2, 4, …
    512, then evenly to the end. 0: never."""
    ladder: Annotated[str, Field(json_schema_extra=OPERATIONAL)] = ""
    """The run whose ladder (`koda ladder`) says before the first step what this training will reach; empty: this run's
    own, where it has one."""
    z_loss: NonNegativeFloat = 0.0
    """Weight of log²Z in the loss, which keeps logits small in long bfloat16 runs (1e-4 is usual)."""
    dropout: Annotated[float, Field(ge=0, lt=1, json_schema_extra=ADDED)] = 0.0
    """Share of what the layers add to the stream that is left out in training, at random."""

    def check(self) -> None:
        if self.ladder:
            finished_ladder(existing(self.ladder))


def segment_ends(steps: int, segments: int) -> list[int]:
    """The step that each segment ends at.

    >>> segment_ends(10, 3)
    [4, 7, 10]
    """
    return [math.ceil(steps * number / segments) for number in range(1, segments + 1)]


def pretraining(settings: Pretrain, model: Model, tokens: Built[CorpusFigures], folder: Path) -> Job:
    """The training of a model of this shape, on what tokenize made, in `folder`."""
    return settings.job(
        model.llama(tokens.figures.vocab_size),
        folder=str(folder),
        train=str(tokens / "train"),
        heldout=str(tokens / "heldout"),
        end_of_text=tokens.figures.end_of_text,
    )


def advice(job: Job, train_tokens: int) -> str:
    """What would help a training that reads its text more often than that helps; empty where it does not."""
    times, dropout = job.tokens / train_tokens, job.recipe.dropout
    enough = WITH_DROPOUT if dropout else READINGS
    if times <= 1.2 * enough:
        return ""
    steps = round(job.recipe.steps * enough / times)
    more = "" if dropout else f"; with pretrain.dropout = 0.1, {WITH_DROPOUT} times help"
    return (
        f"reads the text {times:.0f} times, by which it is learned by heart: pretrain.steps = {steps:,} would read it "
        f"{enough} times{more} (docs/text.md)"
    )


@stage(version=3, resumes=True)
def pretrain(out: Path, settings: Pretrain, model: Model, tokens: Built[CorpusFigures]) -> PretrainFigures:
    """Token shards → checkpoints/, metrics.jsonl and events.jsonl; one task run for each segment. Where the run begins
    with imported weights, these instead, in weights/."""
    if model.weights:
        return retried_call(
            "model.export.adopt:adopt",
            out / "import.log",
            PretrainFigures,
            source=model.weights,
            tokenizer=tokens / "tokenizer.json",
            out=out / "weights",
        )
    job = pretraining(settings, model, tokens, out)
    expect(out, job, settings.ladder, tokens.key)
    if advised := advice(job, tokens.figures.train_tokens):
        log_line(f"pretrain   {advised}")
    trained = run_training("pretrain", job, segment_ends(settings.steps, settings.segments), settings)
    return PretrainFigures(parameters=job.model.parameters, **asdict(trained))
