"""One part of a source → blocks on disk: the work of one worker, on any machine.

A block is some 8 MB of text as tokens, cut between documents. Its content is a function of the part and the recipe
alone, so that it does not depend on which worker wrote it or on interruptions. Each block has two files:

    000012.0003.tokens.npy    the training documents' tokens, one after the other
    000012.0003.npz           for every document kept: hash, tokens, bytes; the held-out documents' tokens and texts

The second is written after the first; the block exists when both do. When the part was read to its end, `000012.json`
records the number of its blocks, and which documents were left out and why.
"""

import collections
import functools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from model.data import cutting, sources
from model.data import tokenizer as tokenizers
from model.data.document import EMPTY, Document, Flaw
from model.data.encoder import Encoder
from model.data.filters import Overlap, reason
from model.data.heldout import hash_of, heldout
from model.data.recipe import Recipe
from model.data.shards import token_type
from model.data.sources import Part
from model.data.special import Special
from model.errors import KodaError
from model.files import atomic_write, read_json, write_json

CHARACTERS = 8 << 20  # of text in a block
NAMED = 20  # notes of each kind in a part; of the others only the number is noted


class Work(NamedTuple):
    """A part to be read by a worker."""

    folder: str  # of the blocks
    tokenizer: str  # the tokenizer.json
    number: int
    part: Part
    recipe: Recipe
    fast: bool  # with tiktoken
    readers: int  # processes that read `docs`


@dataclass
class Report:
    """The result of reading a part: number of blocks, what was dropped and why, and notes for the user."""

    blocks: int = 0
    read: int = 0  # documents, before any was left out
    dropped: dict[str, int] = field(default_factory=dict)  # documents by reason
    near: dict[str, int] = field(default_factory=dict)  # documents near an item of an evaluation file, by its name
    notes: list[str] = field(default_factory=list)
    noted: int = 0  # decisions, those without a note of their own among them
    longest: int = 0  # characters
    longest_name: str = ""
    markers: int = 0  # end-of-text markers that were read as letters
    error: str = ""  # why the part was not read to its end; raised only if the part is needed, not if it was read ahead


class Block(NamedTuple):
    """A block's index; its training tokens are in a file of their own."""

    hashes: np.ndarray  # [documents] uint64
    lengths: np.ndarray  # [documents] uint32: tokens, with the end-of-text token
    sizes: np.ndarray  # [documents] uint32: bytes
    heldout_tokens: np.ndarray
    heldout_texts: np.ndarray  # JSON lines of the held-out documents, in bytes


def fill(work: Work) -> Report:
    """Read the part, filter its documents, and write its blocks; existing blocks are kept.

    Where the recipe refuses bad input, the report contains the error.
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
    """The documents of a part that the recipe keeps; those left out are counted in `report`.

    Raises KodaError for bad input where the recipe refuses it.
    """
    overlap = _overlap(recipe.contamination) if recipe.contamination else None
    dropped: collections.Counter[str] = collections.Counter()
    near: collections.Counter[str] = collections.Counter()
    notes: collections.Counter[str] = collections.Counter()  # by kind

    def note(line: str, kind: str = "") -> None:
        notes[kind] += 1
        if notes[kind] <= NAMED:
            report.notes.append(line)

    distinct: set[int] = set()  # hashes of the documents kept, where the recipe limits their number
    for item in cutting.cut(sources.documents(part, recipe, note, readers), recipe.cut, recipe.heldout_fraction):
        report.read += 1
        if isinstance(item, Flaw):
            if recipe.bad_input == "refuse" and item.reason != EMPTY:
                raise KodaError(
                    f"{item.name}: {item.detail}. Fix it, remove it from tokenize.source, or set "
                    "tokenize.bad_input=skip, which leaves out, counts and names all such input."
                )
            note(f"{item.name} was left out: {item.detail}", item.reason)
            why = item.reason
        else:
            why = reason(item.text, recipe)
            if not why and overlap and (file := overlap.near(item.text)):
                near[file] += 1
                note(f"{item.name} shares 13 words in a row with an item of {file}", "near")
                why = "contaminated" if recipe.drop_contaminated else ""
        if why:
            dropped[why] += 1
        else:
            assert isinstance(item, Document)
            if recipe.cut == "never":
                report.markers += cutting.markers(item.text)
            if len(item.text) > report.longest:
                report.longest, report.longest_name = len(item.text), item.name
            yield item
            if recipe.limit:
                distinct.add(hash_of(item.text) if recipe.deduplicate else len(distinct))
                if len(distinct) == recipe.limit:
                    break
    report.dropped, report.near = dict(dropped), dict(near)
    report.noted = notes.total()
    for kind, count in notes.items():
        if count > NAMED:
            report.notes.append(f"… and {count - NAMED:,} more {kind or 'read as Windows-1252'} in the same part")


def index(folder: Path, part: int, block: int) -> Path:
    return folder / f"{part:06}.{block:04}.npz"


def tokens(folder: Path, part: int, block: int) -> Path:
    return folder / f"{part:06}.{block:04}.tokens.npy"


def report(folder: Path, part: int) -> Report | None:
    """The report of a part that was read to its end, else None."""
    path = _done(folder, part)
    return Report(**read_json(path)) if path.is_file() else None


def read(folder: Path, part: int, block: int) -> Block:
    """The index of an existing block."""
    with np.load(index(folder, part, block), allow_pickle=False) as arrays:
        return Block(**{name: arrays[name] for name in Block._fields})


def _write(
    folder: Path, part: int, number: int, documents: list[Document], encoder: Encoder, special: Special, recipe: Recipe
) -> None:
    encoder.check(documents[0].text, documents[0].name)
    kind = token_type(encoder.tokenizer.get_vocab_size())
    hashes = np.array([hash_of(document.text) for document in documents], np.uint64)
    encoded = [
        np.concatenate([special.beginning, encoder(document.text), [special.end]]).astype(kind)
        for document in documents
    ]
    is_out = heldout(hashes, recipe.heldout_fraction)
    empty = [np.empty(0, kind)]  # np.concatenate needs one array at least
    texts = [json.dumps(d._asdict(), ensure_ascii=False) for d, out in zip(documents, is_out, strict=True) if out]
    block = Block(
        hashes,
        np.array([len(ids) for ids in encoded], np.uint32),
        np.array([len(document.text.encode()) for document in documents], np.uint32),
        np.concatenate([*empty, *(ids for ids, out in zip(encoded, is_out, strict=True) if out)]),
        np.frombuffer("".join(f"{line}\n" for line in texts).encode(), np.uint8),
    )
    with atomic_write(tokens(folder, part, number), "wb") as file:
        train = [*empty, *(ids for ids, out in zip(encoded, is_out, strict=True) if not out)]
        np.save(file, np.concatenate(train), allow_pickle=False)
    with atomic_write(index(folder, part, number), "wb") as file:
        np.savez(file, allow_pickle=False, **block._asdict())


def _done(folder: Path, part: int) -> Path:
    return folder / f"{part:06}.json"


def _groups(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """The documents of each block."""
    group: list[Document] = []
    characters = 0
    for document in documents:
        group.append(document)
        characters += len(document.text)
        if characters >= CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


@functools.lru_cache(maxsize=2)
def _encoder(path: str, fast: bool) -> tuple[Encoder, Special]:
    vocabulary = tokenizers.load(path)
    return Encoder(vocabulary.tokenizer, fast), vocabulary.special


@functools.lru_cache(maxsize=2)
def _overlap(folder: str) -> Overlap:
    return Overlap(folder)
