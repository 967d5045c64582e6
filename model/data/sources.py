"""Where text comes from: `tokenize.source` by its form, cut into parts that can be read independently."""

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow
import pyarrow.parquet

from model.data import docs, folders, hub, readers
from model.data.document import Document, Flaw
from model.data.recipe import Recipe
from model.data.strings import shown
from model.errors import KodaError
from model.files import sha256

SUFFIXES = (".txt", ".md", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
PART = 8 << 20  # bytes of one part, where a source can be cut
PART_FILES = 1000  # most files in one part
SMALL = 1 << 30  # bytes of a source up to which its fingerprint is of the files' content

ROWS = ".json"  # read where a file is named; in a folder it is more often about the data than data
Kind = Literal["docs", "hub", "text", "jsonl", "json", "compressed", "parquet"]
Note = Callable[[str], None]  # takes a line about a document that needed a decision


class Part(NamedTuple):
    """A piece of a source that one worker reads from beginning to end."""

    source: str
    kind: Kind
    paths: tuple[str, ...] = ()  # files; hub: the commit
    start: int = 0  # jsonl: bytes; parquet: row groups; hub: the number of the data set's part
    stop: int = 0
    size: int = 0  # bytes on disk, for the progress bar; 0: unknown


def fingerprint(source: str) -> str:
    """A string that changes with the source's content. Files: their names, and their content up to SMALL bytes in all,
    above that their sizes and modification times. `docs`: the versions of the packages. The Hub: empty.
    """
    if is_docs(source):
        return docs.fingerprint(source)
    if is_hub(source):
        hub.named(source)
        return ""
    stats = [(path, path.stat()) for path in files(source) if path.exists()]
    small = sum(stat.st_size for _, stat in stats) <= SMALL
    facts = (
        f"{shown(os.path.relpath(path, source))} {sha256(path) if small else f'{stat.st_size} {stat.st_mtime_ns}'}"
        for path, stat in stats
        if os.access(path, os.R_OK)
    )
    return "\n".join(facts)


def check(source: str) -> None:
    """Raise KodaError for a source that is not there, is named wrongly or has no file that is read; opens none."""
    if is_docs(source):
        docs.chosen(source)
    elif is_hub(source):
        hub.named(source)
    else:
        files(source)


def parts(source: str, recipe: Recipe, commit: str) -> list[Part]:
    """The parts of a source in their order; of a Hub data set, those at `commit`.

    Raises KodaError for a source that is missing or contains no file that can be read.
    """
    if is_docs(source):
        return [Part(source, "docs")]
    if is_hub(source):
        name, config, _ = hub.named(source)
        count = hub.shards(name, config, recipe.split, commit)
        return [Part(source, "hub", (commit,), start=index) for index in range(count)]
    return list(_join_small(_file_parts(source, path) for path in files(source)))


def documents(part: Part, recipe: Recipe, note: Note = lambda _: None, workers: int = 1) -> Iterator[Document | Flaw]:
    """The documents of a part in their order, and its flaws; `note` is called for a document that needed a decision."""
    return READERS[part.kind](part, recipe, note, workers)


def _hub_documents(part: Part, recipe: Recipe) -> Iterator[Document | Flaw]:
    name, config, _ = hub.named(part.source)
    rows = hub.rows(name, config, recipe.split, part.paths[0], part.start)
    return readers.texts(rows, recipe.text_column)


READERS: dict[Kind, Callable[[Part, Recipe, Note, int], Iterator[Document | Flaw]]] = {
    "docs": lambda part, recipe, note, workers: docs.documents(part.source, workers),
    "hub": lambda part, recipe, *_: _hub_documents(part, recipe),
    "text": lambda part, recipe, note, _: chain.from_iterable(
        readers.text(Path(path), recipe.encoding, note) for path in part.paths
    ),
    "jsonl": lambda part, recipe, *_: readers.jsonl(Path(part.paths[0]), recipe.text_column, part.start, part.stop),
    "json": lambda part, recipe, *_: readers.json_array(Path(part.paths[0]), recipe.text_column),
    "compressed": lambda part, recipe, *_: readers.compressed_jsonl(Path(part.paths[0]), recipe.text_column),
    "parquet": lambda part, recipe, *_: readers.parquet(Path(part.paths[0]), recipe.text_column, part.start, part.stop),
}


def commits(named: Iterable[str]) -> dict[str, str]:
    """The commit that each Hub data set among these sources is at now."""
    return {source: hub.commit(source) for source in named if is_hub(source)}


def is_docs(source: str) -> bool:
    return source == "docs" or source.startswith("docs:")


def is_hub(source: str) -> bool:
    return source.startswith(hub.PREFIX)


def files(source: str, suffixes: tuple[str, ...] = SUFFIXES, setting: str = "tokenize.source") -> list[Path]:
    """The files with these suffixes in a folder and below it, sorted; or the one file that `source` names.

    Raises KodaError where there is no such file or folder, for a file of another kind, and for a folder that cannot be
    read or has no such file.
    """
    root = Path(source)
    if root.is_file():
        name = root.name.lower()
        if name.endswith((*suffixes, ROWS)) or (".txt" in suffixes and not root.suffix):
            return [root]
        plain = " Give plain text the ending .txt." if ".txt" in suffixes else ""
        raise KodaError(
            f"{setting} = {source!r} is not read: it does not end in {', '.join((*suffixes, ROWS))}.{plain}"
        )
    if not root.exists():
        raise KodaError(
            f"{setting} = {source!r} does not exist. Use a file or a folder, `docs` (the documentation on this "
            "machine), or hub:USER/NAME (a data set on the Hugging Face Hub)."
        )

    def refuse(error: OSError) -> None:
        raise KodaError(f"{shown(error.filename)}: {error.strerror}. Every folder of {setting} must be readable.")

    listed = folders.listing(root, suffixes, refuse)
    if not listed.paths:
        unread = "".join(f" ({note})" for note in listed.notes)
        raise KodaError(
            f"{setting} = {source!r} contains no text: no file there ends in {', '.join(suffixes)}{unread}."
        )
    return listed.paths


def passed_over(source: str, suffixes: tuple[str, ...] = SUFFIXES) -> list[str]:
    """A line about each kind of files that a folder has and that are not read."""
    if is_docs(source) or is_hub(source) or not Path(source).is_dir():
        return []
    return [f"{source}: {note}" for note in folders.listing(Path(source), suffixes).notes]


def _file_parts(source: str, path: Path) -> Iterator[Part]:
    name, paths = path.name.lower(), (str(path),)
    size = path.stat().st_size if path.exists() else 0
    if name.endswith((".jsonl.gz", ".jsonl.zst")):
        yield Part(source, "compressed", paths, size=size)
    elif name.endswith(".jsonl"):
        for start in range(0, max(size, 1), PART):
            yield Part(source, "jsonl", paths, start, start + PART, min(PART, size - start))
    elif name.endswith(ROWS):
        yield Part(source, "json", paths, size=size)
    elif name.endswith(".parquet"):
        yield from _parquet_parts(source, path, size)
    else:
        yield Part(source, "text", paths, size=size)


def _parquet_parts(source: str, path: Path, size: int) -> Iterator[Part]:
    """Row groups, joined up to the size of a part; a file that cannot be opened is one part: its reader reports it."""
    try:
        metadata = pyarrow.parquet.read_metadata(path)
    except (OSError, pyarrow.ArrowInvalid):
        yield Part(source, "parquet", (str(path),), size=size)
        return
    sizes = [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]
    start = pending = 0  # the first row group of the part, and its bytes
    for group, bytes_ in enumerate(sizes):
        pending += bytes_
        if pending >= PART or group + 1 == len(sizes):
            yield Part(source, "parquet", (str(path),), start, group + 1, pending * size // max(1, sum(sizes)))
            start, pending = group + 1, 0


def _join_small(files: Iterable[Iterator[Part]]) -> Iterator[Part]:
    """The parts of all files in their order, with text files that follow each other joined up to the size of a part."""
    pending: list[Part] = []

    def joined() -> Iterator[Part]:
        if pending:
            paths = tuple(path for part in pending for path in part.paths)
            yield Part(pending[0].source, "text", paths, size=sum(part.size for part in pending))
            pending.clear()

    for part in chain.from_iterable(files):
        if part.kind != "text":
            yield from joined()
            yield part
            continue
        pending.append(part)
        if len(pending) == PART_FILES or sum(one.size for one in pending) >= PART:
            yield from joined()
    yield from joined()
