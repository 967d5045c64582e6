"""What `koda inspect` measures, as it is written to inspect.json and read back by the page.

Lists of lists have the axes that their comment names, outermost first.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Learning:
    """How the base model learned, over its snapshots."""

    steps: list[int]
    kept: bool  # were snapshots taken? If not, the finished weights are the only ones
    damaged: list[int]  # steps whose snapshots could not be read
    scores: dict[str, list[list[list[float]]]]  # by name: snapshots × layers × heads
    chance: dict[str, float]  # of each score
    ablation: list[list[float]]  # layers × heads, of the last weights: nats of loss that the head saves
    ablated_tokens: int  # that this was measured on
    emergence: dict[str, list[list[int]]]  # layers × heads: the first step with half of the last value
    losses: list[float]  # by snapshot, of the probe's text, nats
    first_losses: list[float]  # by snapshot, of a random text
    second_losses: list[float]  # of its repetition
    late_less_early: list[float]  # by snapshot: loss in a row's last tenth less that in its second tenth
    norms: list[list[float]]  # snapshots × layers + 1, root mean square of the stream
    stable_rank: dict[str, list[list[float]]]  # by matrix: snapshots × layers
    effective_rank: dict[str, list[list[float]]]
    # By matrix: change a step since the last snapshot, over the weights; None where it is lost in their rounding.
    update_ratio: dict[str, list[float | None]]
    full_rank: dict[str, int]  # by matrix: the most that a rank can be
    pieces: list[str]  # a fixed text, token by token
    size: int  # bytes of it, without the first token
    bits: list[list[float]]  # snapshots × its tokens but the first


@dataclass(frozen=True)
class HeadPattern:
    """One head's attention over the text."""

    layer: int
    head: int
    attention: list[list[float]]  # queries × keys


@dataclass(frozen=True, kw_only=True)
class Text:
    """One text through the base model."""

    pieces: list[str]
    notes: list[str]  # what was done to the text
    top: list[list[str]]  # layers + 1 × tokens: the likeliest next token
    probability: list[list[float]]
    rank: list[list[int]]  # of the token that comes next
    logprob: list[list[float]]
    divergence: list[list[float]]  # from the model's own prediction, nats
    settles: list[int]  # by token: the first layer with the final answer
    patterns: list[HeadPattern]
    candidates: list[str]  # the two likeliest tokens after the text
    logits: list[float]  # theirs
    attribution: dict[str, list[float]]  # by part, the logit of each candidate
    angles: list[list[float]]  # rotary pairs × positions: the cosine of the angle


@dataclass(frozen=True, kw_only=True)
class Finetuning:
    """What SFT changed."""

    layers: list[int]  # those whose matrices were compared
    values: dict[str, list[list[float]]]  # by matrix: layers × largest singular values of the update, relative
    effective_rank: dict[str, list[float]]  # by matrix: layers
    new_directions: dict[str, list[int]]
    looked_at: int  # directions of each matrix
    pieces: list[str]  # a conversation
    divergence: list[float]  # of the prediction of each token but the first, nats
    same_top: float  # share of them with the same likeliest token


@dataclass(frozen=True, kw_only=True)
class Stretching:
    """What the longer context changed."""

    before: int  # tokens of context
    after: int
    wavelengths_before: list[float]  # positions, by rotary pair
    wavelengths_after: list[float]
    edges: list[int]  # of the ranges of distance
    distance_before: list[list[list[float]]]  # layers × heads × ranges
    distance_after: list[list[list[float]]]
    period: int  # tokens between a random text and its copy, more than the old context
    induction_before: list[list[float]]  # layers × heads
    induction_after: list[list[float]]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A run of tokens of an answer that is in the text it was trained on."""

    start: int  # token of the answer
    length: int
    corpus: str  # tokenize or sft
    name: str  # of the document, or its first words
    before: str
    words: str
    after: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A text that the model generated, and where it has its words from."""

    prompt: str
    pieces: list[str]
    sources: list[Source]


@dataclass(frozen=True, kw_only=True)
class Origins:
    """Where answers came from."""

    searched: dict[str, int]  # tokens, by corpus
    least: int  # tokens of the shortest run that is listed
    answers: list[Answer]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Everything that was measured of a model."""

    of: str  # identifies the weights
    imported: bool  # the base model was trained by others, on other text
    layers: int
    heads: int
    kv_heads: int
    context: int
    parameters: int
    learning: Learning
    text: Text
    origins: Origins | None  # None where no text is known that it learned from
    finetuning: Finetuning | None  # None: there was none, or it changed nothing
    stretching: Stretching | None
    seconds: dict[str, float]  # that it took, by part
