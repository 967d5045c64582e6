"""How text becomes tokens: the settings that every worker of the tokenize stage gets, small enough to be sent."""

from dataclasses import dataclass

from model.data.cutting import Cut


@dataclass(frozen=True)
class Recipe:
    """The settings of the tokenize stage that determine its output; tasks/tokenize.py documents each."""

    source: dict[str, float]  # each source with its weight
    tokenizer: str
    template: str
    vocab_size: int
    text_column: str
    encoding: str
    split: str
    cut: Cut
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
