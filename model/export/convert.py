"""All exports of one model."""

from pathlib import Path
from typing import Any

from model import weights
from model.data import tokenizer as tokenizers
from model.export.about import About
from model.export.formats import FORMATS
from model.export.formats.format import Export, Source


def write(
    source: str,
    tokenizer: str,
    out: str,
    about: dict[str, Any],
    variants: dict[str, tuple[str, ...]],
    text: str | None = None,
) -> list[Export]:
    """Write the exports of these formats and variants below `out`, and of the formats that they are made from.

    Small number types are fitted to the token shards `text`. The model is in memory once, and where it is fitted, with
    copies in float32.
    """
    card = About(**{**about, "datasets": tuple(about["datasets"])})
    shards = None if text is None else Path(text)
    exported = Source(weights.read(Path(source)), tokenizers.load(tokenizer), card, shards)
    return [export for name, chosen in variants.items() for export in FORMATS[name].write(exported, Path(out), chosen)]
