"""One part of a source → blocks on disk: what a worker does, wherever it runs.

A block holds some 8 MB of text as tokens, cut between documents. What is in it is a function of the part and the
recipe alone, so that it does not matter who made it, or how often the making was interrupted. Of each there are

    000012.0003.tokens.npy    the training documents' tokens, one after the other
    000012.0003.npz           for every document kept: hash, tokens, bytes; the held-out ones' tokens and texts

and when a part is through, `000012.json` says how many blocks it has and what was left out of them, and why. The
second file is written after the first and makes the block count.
"""

import collections
import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from model.data import sources
from model.data import tokenizer as tokenizers
from model.data.document import EMPTY, Document, Flaw
from model.data.encoder import Encoder
from model.data.filters import Overlap, reason
from model.data.recipe import Recipe
from model.data.shards import token_type
from model.data.sources import Part
from model.errors import KodaError
from model.files import finished, read_json, write_json

CHARACTERS = 8 << 20  # of text in a block
NAMED = 20  # of each kind in a part are told one by one, of the rest how many there are


class Work(NamedTuple):
    """A part to be read, as it is given to a worker."""

    folder: str  # where the blocks go
    tokenizer: str  # the tokenizer.json
    number: int
    part: Part
    recipe: Recipe
    fast: bool  # with tiktoken
    readers: int  # processes that read `docs`


@dataclass
class Report:
    """What became of a part: how many blocks, what was dropped and why, and what a person should hear of."""

    blocks: int = 0
    read: int = 0  # documents, good or bad
    dropped: dict[str, int] = field(default_factory=dict)
    near: dict[str, int] = field(default_factory=dict)  # documents near an item of an evaluation file, by its name
    notes: list[str] = field(default_factory=list)
    longest: int = 0  # characters
    longest_name: str = ""
    error: str = ""  # why the part was not read to its end: said when it is needed, and not when it was only read ahead


class Block(NamedTuple):
    """A block's index; its training tokens are in the file beside it."""

    hashes: np.ndarray  # [documents] uint64
    lengths: np.ndarray  # [documents] uint32: tokens, with the one that ends the document
    sizes: np.ndarray  # [documents] uint32: bytes
    heldout_tokens: np.ndarray
    heldout_texts: np.ndarray  # JSON lines of the held-out documents, in bytes


def fill(work: Work) -> Report:
    """Read the part, keep what the recipe keeps, and write its blocks; those that stand are passed over.

    Where the recipe refuses something, the report says so.
    """
    folder, recipe = Path(work.folder), work.recipe
    encoder, end = _encoder(work.tokenizer, work.fast)
    report = Report()
    try:
        for number, documents in enumerate(_groups(kept(work.part, recipe, report, work.readers))):
            report.blocks = number + 1
            if not index(folder, work.number, number).is_file():
                _write(folder, work.number, number, documents, encoder, end, recipe)
    except KodaError as error:
        return replace(report, error=str(error))
    write_json(_done(folder, work.number), asdict(report))
    return report


def kept(part: Part, recipe: Recipe, report: Report, readers: int = 1) -> Iterator[Document]:
    """The documents of a part that are worth learning from; what is left out is counted in `report`.

    Raises KodaError for bad input where the recipe refuses it.
    """
    overlap = _overlap(recipe.contamination) if recipe.contamination else None
    dropped: collections.Counter[str] = collections.Counter()
    near: collections.Counter[str] = collections.Counter()
    told: collections.Counter[str] = collections.Counter()

    def note(line: str, kind: str = "") -> None:
        told[kind] += 1
        if told[kind] <= NAMED:
            report.notes.append(line)

    different: set[int] = set()  # hashes of what is kept, where there is a limit to it
    for found in sources.documents(part, recipe, note, readers):
        report.read += 1
        if isinstance(found, Flaw):
            if recipe.bad_input == "refuse" and found.reason != EMPTY:
                raise KodaError(
                    f"{found.name}: {found.detail}. Mend it, take it out of tokenize.source, or leave all such out "
                    "with tokenize.bad_input=skip, which counts and names them."
                )
            note(f"{found.name} was left out: {found.detail}", found.reason)
            why = found.reason
        else:
            why = reason(found.text, recipe)
            if not why and overlap and (owner := overlap.near(found.text)):
                near[owner] += 1
                note(f"{found.name} shares 13 words in a row with an item of {owner}", "near")
                why = "contaminated" if recipe.drop_contaminated else ""
        if why:
            dropped[why] += 1
        else:
            assert isinstance(found, Document)
            if len(found.text) > report.longest:
                report.longest, report.longest_name = len(found.text), found.name
            yield found
            if recipe.limit:
                different.add(hash_of(found.text) if recipe.deduplicate else len(different))
                if len(different) == recipe.limit:
                    break
    report.dropped, report.near = dict(dropped), dict(near)
    for kind, count in told.items():
        if count > NAMED:
            report.notes.append(f"… and {count - NAMED:,} more {kind or 'read as Windows-1252'} in the same part")


def is_heldout(text: str, fraction: float) -> bool:
    """Does this text belong to the held-out part? Its own bytes decide, and nothing else."""
    return bool(heldout(np.array([hash_of(text)], np.uint64), fraction)[0])


def heldout(hashes: np.ndarray, fraction: float) -> np.ndarray:
    """`[n]` bool: which of the documents with these hashes are held out."""
    return hashes < np.uint64(fraction * 2**64)


def hash_of(text: str) -> int:
    """The 64 bits by which a document is known: two with the same are taken to be the same."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8])


def index(folder: Path, part: int, block: int) -> Path:
    return folder / f"{part:06}.{block:04}.npz"


def tokens(folder: Path, part: int, block: int) -> Path:
    return folder / f"{part:06}.{block:04}.tokens.npy"


def report(folder: Path, part: int) -> Report | None:
    """The report of a part that is through, or None."""
    path = _done(folder, part)
    return Report(**read_json(path)) if path.is_file() else None


def read(folder: Path, part: int, block: int) -> Block:
    """The index of a block that stands."""
    with np.load(index(folder, part, block), allow_pickle=False) as arrays:
        return Block(**{name: arrays[name] for name in Block._fields})


def _write(
    folder: Path, part: int, number: int, documents: list[Document], encoder: Encoder, end: int, recipe: Recipe
) -> None:
    encoder.check(documents[0].text, documents[0].name)
    kind = token_type(encoder.tokenizer.get_vocab_size())
    hashes = np.array([hash_of(document.text) for document in documents], np.uint64)
    encoded = [np.append(encoder(document.text), np.uint32(end)).astype(kind) for document in documents]
    held = heldout(hashes, recipe.heldout_fraction)
    nothing = [np.empty(0, kind)]
    put_aside = [json.dumps(d._asdict(), ensure_ascii=False) for d, out in zip(documents, held, strict=True) if out]
    block = Block(
        hashes,
        np.array([len(one) for one in encoded], np.uint32),
        np.array([len(document.text.encode()) for document in documents], np.uint32),
        np.concatenate([*nothing, *(one for one, out in zip(encoded, held, strict=True) if out)]),
        np.frombuffer("".join(f"{line}\n" for line in put_aside).encode(), np.uint8),
    )
    with finished(tokens(folder, part, number), "wb") as file:
        learned = [*nothing, *(one for one, out in zip(encoded, held, strict=True) if not out)]
        np.save(file, np.concatenate(learned), allow_pickle=False)
    with finished(index(folder, part, number), "wb") as file:
        np.savez(file, allow_pickle=False, **block._asdict())


def _done(folder: Path, part: int) -> Path:
    return folder / f"{part:06}.json"


def _groups(documents: Iterator[Document]) -> Iterator[list[Document]]:
    held: list[Document] = []
    characters = 0
    for document in documents:
        held.append(document)
        characters += len(document.text)
        if characters >= CHARACTERS:
            yield held
            held, characters = [], 0
    if held:
        yield held


@functools.lru_cache(maxsize=2)
def _encoder(path: str, fast: bool) -> tuple[Encoder, int]:
    tokenizer = tokenizers.load(path)
    return Encoder(tokenizer, fast), tokenizers.end_of_text(tokenizer)


@functools.lru_cache(maxsize=2)
def _overlap(folder: str) -> Overlap:
    return Overlap(folder)
