"""What each part of the pipeline measures: made where it is measured, written to stage.json, read by all who show it.

Fields that hold several figures of one name are keyed by what the figure is of: a source, a task, a file.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class CorpusFigures:
    """A text as token shards."""

    documents: int
    heldout_documents: int
    train_tokens: int
    heldout_tokens: int
    vocab_size: int
    end_of_text: int  # id of the token that ends every document
    train_bytes: int
    heldout_bytes: int
    bytes_per_token: float
    read: int  # documents, before any was left out
    dropped: dict[str, int]  # documents that were left out, by reason
    copies: int  # documents whose text had occurred before, kept or not
    near_evaluation_items: dict[str, int]  # documents that share 13 words in a row with an item, by the items' file
    longest_document: int  # characters
    longest_document_name: str
    encoder: str  # tiktoken or tokenizers
    encoder_why: str  # why it is not tiktoken
    commits: dict[str, str]  # of data sets on the Hub, by source
    notes: int  # decisions about documents and files, most of them a line of notes.json
    cut: str = "never"  # where documents were cut: never, endoftext or paragraphs
    markers: int = 0  # `<|endoftext|>` that were read as letters


@dataclass(frozen=True, kw_only=True)
class TrainingFigures:
    """A finished training; 0 steps where there was none."""

    steps: int = 0
    tokens: int = 0
    loss: float | None = None  # of the last logged batch, nats per trained token
    heldout_loss: float | None = None  # nats per trained token
    restarts: int = 0


@dataclass(frozen=True, kw_only=True)
class PretrainFigures(TrainingFigures):
    """A base model: trained here, or imported."""

    parameters: int
    imported: str = ""  # the folder's name
    dtype: str = ""  # of imported weights


@dataclass(frozen=True, kw_only=True)
class CheckpointFigures:
    """Verified weights."""

    parameters: int
    step: int = 0
    heldout_loss: float | None = None  # measured again, nats per token; None for imported weights
    recorded_heldout_loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class PackingFigures:
    """Conversations as rows."""

    conversations: int
    heldout_conversations: int
    text_rows: int = 0  # of plain text, among those that are trained on
    too_long: int  # left out
    cut: int = 0
    skipped: dict[str, int] = field(default_factory=dict)  # left out as bad input, by reason
    unread: dict[str, int] = field(default_factory=dict)  # rows by the column of metadata that they have
    commits: dict[str, str] = field(default_factory=dict)  # of data sets on the Hub, by source


@dataclass(frozen=True, kw_only=True)
class EndingFigures:
    """Does a model stop by itself? Share of held-out questions whose answer ends within the limit."""

    ends_by_itself: float
    asked: int  # questions


@dataclass(frozen=True, kw_only=True)
class FinetunedFigures(EndingFigures):
    """A fine-tuned model beside the one it began with."""

    ends_by_itself_before: float
    heldout_loss: float | None = None  # nats per trained token


@dataclass(frozen=True, kw_only=True)
class SftFigures(PackingFigures, TrainingFigures, EndingFigures):
    ends_by_itself_before: float


@dataclass(frozen=True, kw_only=True)
class AdaptationFigures:
    """What a training at the longer context reads."""

    long_documents: int = 0
    long_rows: int = 0
    chat_rows: int = 0


@dataclass(frozen=True, kw_only=True)
class StretchFigures:
    """A model's positions, before and after."""

    context: int  # tokens
    method: str
    rope_theta: float
    old_rope_theta: float


@dataclass(frozen=True)
class LossByContext:
    """Mean held-out loss, nats per token."""

    within: float  # up to the old context
    beyond: float


@dataclass(frozen=True, kw_only=True)
class ContextFigures(EndingFigures):
    """What a longer context is worth. The ratios are of held-out losses."""

    old_lengths_ratio: float  # up to the old context, to the model before
    beyond_ratio: float  # beyond it, to what the old context ends with
    beyond_ratio_before: float  # the same of the model before
    passkeys_found: float  # share
    loss_by_method: dict[str, LossByContext]


@dataclass(frozen=True, kw_only=True)
class ExtendFigures(StretchFigures, AdaptationFigures, TrainingFigures):
    measured: ContextFigures | None = None  # None where the context stayed as it was


@dataclass(frozen=True, kw_only=True)
class ParityFigures:
    """An export in its own runtime against the JAX model."""

    failed: list[str]  # what is wrong, a sentence each
    first_difference: str = ""  # where it fails: the first field or tensor that is not the model's
    kl_divergence: float = 0.0  # mean, nats
    kl_divergence_beyond: float | None = None  # the same beyond the old context
    max_logprob_difference: float = 0.0  # nats
    perplexity_ratio: float = 0.0
    kl_limit: float = 0.0
    perplexity_limit: float = 0.0
    greedy_equal: int = 0  # tokens until the first that differs
    longest_prefix: int = 0  # tokens
    hard_strings: int = 0  # strings whose token ids were compared
    answer: str = ""
    stopped: bool = False  # the answer ended by itself
    same_answer: bool = False


@dataclass(frozen=True, kw_only=True)
class ConvertFigures:
    exports: int
    max_kl_divergence: float
    stopped: int  # exports whose answer ended by itself
    parity: dict[str, ParityFigures]  # by path


@dataclass(frozen=True, kw_only=True)
class TaskFigures:
    """A model on one task; shares between 0 and 1, None where the task has no such figure."""

    n: int = 0  # items
    acc: float | None = None
    acc_norm: float | None = None  # by the likelihood per character
    stderr: float | None = None  # of the quoted metric
    perplexity: float | None = None  # of tasks without choices
    chance: float | None = None
    calibration_error: float | None = None
    above_chance: bool = False  # by two standard errors
    truncated: int = 0  # items that were cut to the context
    longest: float | None = None  # accuracy of always choosing the longest
    unigram: float | None = None  # accuracy of choosing by the frequency of tokens

    @property
    def quoted(self) -> float:
        """The metric that is usually quoted: acc_norm where there is one."""
        quoted = self.acc if self.acc_norm is None else self.acc_norm
        assert quoted is not None, "of a task with items"
        return quoted


@dataclass(frozen=True)
class Sample:
    prompt: str
    text: str


@dataclass(frozen=True, kw_only=True)
class SuiteFigures:
    """A model on the held-out text and on both suites."""

    bits_per_byte: float
    tasks: dict[str, TaskFigures]  # home-made
    standard: dict[str, TaskFigures] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurement:
    """The figures of a model, and what another can be compared with it by."""

    figures: SuiteFigures
    right: dict[str, dict[str, list[bool]]]  # by suite and task: which items were right
    documents: list[list[float]]  # of each held-out document: bits and bytes


@dataclass(frozen=True, kw_only=True)
class EvaluateFigures(SuiteFigures):
    """`bits_per_byte` is the base model's; the tasks are the final one's."""

    bits_per_byte_final: float
    bits_per_byte_by_source: dict[str, float]
    xz_bits_per_byte: float  # of `xz -9` on the same bytes
    ratio_to_xz: float
    heldout_bytes: int
    tasks_above_chance: int
    samples: list[Sample]


@dataclass(frozen=True, kw_only=True)
class PublishFigures:
    where: str
    files: int
    bytes: int
    commits: dict[str, str]  # on the Hub, by format


STAGES = {
    "tokenize": CorpusFigures,
    "pretrain": PretrainFigures,
    "checkpoint": CheckpointFigures,
    "sft": SftFigures,
    "extend": ExtendFigures,
    "convert": ConvertFigures,
    "evaluate": EvaluateFigures,
    "publish": PublishFigures,
}
