"""How text becomes tokens: what every worker of the tokenize stage has to know, small enough to be sent to it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """The settings of the tokenize stage that decide its bytes; what each means stands there."""

    source: dict[str, float]  # each source with its weight
    tokenizer: str
    vocab_size: int
    text_column: str
    split: str
    limit: int
    shortest: int
    longest: int
    quality: bool
    deduplicate: bool
    bad_input: str
    contamination: str
    drop_contaminated: bool
    heldout_fraction: float
    shard_tokens: int
