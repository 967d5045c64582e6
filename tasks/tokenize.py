"""Stage 1: text → tokenizer and token shards, with a held-out part."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveInt

from model.data import prepare, sources, tokenizer
from model.files import read_json
from tasks.progress import progress, say
from tasks.section import OPERATIONAL, Section
from tasks.stage import stage

SHOWN = 3  # decisions about documents that are told; all of them are in notes.json


class Tokenize(Section):
    source: str = "docs"
    """Where the text comes from: a file, a folder of text, or `docs`, the documentation installed on this machine
    (`docs:stdlib,numpy` for some of it)."""
    tokenizer: str = "train"
    """`train` learns a byte-level BPE here; else a tokenizer.json, or a folder with vocab.json and merges.txt."""
    vocab_size: Annotated[int, Field(ge=257, le=1 << 20)] = 4096
    """Entries of a vocabulary that is learned here: 256 bytes, the end-of-text token, and what is merged from them."""
    heldout_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.03
    """Share of the documents that is never trained on, chosen by the hash of each document's own text."""
    shard_tokens: PositiveInt = 1 << 24
    """Tokens in one shard file."""
    workers: Annotated[int, Field(ge=1, json_schema_extra=OPERATIONAL)] = 2
    """Processes that read `docs`."""

    def fingerprint(self) -> str:
        return sources.fingerprint(self.source) + tokenizer.fingerprint(self.tokenizer)


@stage(version=1)
def tokenize(out: Path, settings: Tokenize) -> dict[str, Any]:
    """Text → tokenizer.json, train/ and heldout/."""
    with progress("tokenize", 0) as watch:
        figures = prepare.prepare(out, **settings.model_dump(), watch=watch)
    notes: list[str] = read_json(out / "notes.json")
    for note in notes[:SHOWN]:
        say(f"tokenize   {note}")
    if len(notes) > SHOWN:
        say(f"tokenize   … and {len(notes) - SHOWN} more of the kind, in notes.json")
    return figures
