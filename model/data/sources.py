"""Where text comes from: `tokenize.source`, told apart by its form, and cut into parts that stand on their own."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow
import pyarrow.parquet

from model.data import docs, hub, readers
from model.data.document import Document, Flaw
from model.data.recipe import Recipe
from model.errors import KodaError
from model.files import sha256

SUFFIXES = (".txt", ".md", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
PART = 8 << 20  # bytes of one part, where a source can be cut
PART_FILES = 1000  # files of one part at most
SMALL = 1 << 30  # bytes up to which files are known by their content


class Part(NamedTuple):
    """Something that one worker reads from its beginning to its end; the parts of a source follow one another."""

    source: str
    kind: str  # docs, text, jsonl, compressed, parquet, hub
    paths: tuple[str, ...] = ()
    start: int = 0  # jsonl: bytes; parquet: row groups; hub: which of the data set's parts
    stop: int = 0
    size: int = 0  # bytes on disk, to tell how much of the whole it is; 0: nobody knows


def fingerprint(source: str) -> str:
    """What the source holds. Files: their names and content up to SMALL bytes in all, beyond that their sizes and times
    of change. `docs`: the versions of the packages. The Hub: its name alone.
    """
    if is_docs(source):
        return docs.fingerprint(source)
    if is_hub(source):
        hub.named(source)
        return ""
    found = [(path, path.stat()) for path in files(source) if path.exists()]
    small = sum(stat.st_size for _, stat in found) <= SMALL
    facts = (
        f"{os.path.relpath(path, source)} {sha256(path) if small else f'{stat.st_size} {stat.st_mtime_ns}'}"
        for path, stat in found
        if os.access(path, os.R_OK)
    )
    return "\n".join(facts)


def parts(source: str, recipe: Recipe, commit: str) -> list[Part]:
    """The parts of a source in their order; of a Hub data set, as it was at `commit`.

    Raises KodaError for a source that is missing or holds nothing of a kind that is read.
    """
    if is_docs(source):
        return [Part(source, "docs")]
    if is_hub(source):
        name, config, _ = hub.named(source)
        count = hub.shards(name, config, recipe.split, commit)
        return [Part(source, "hub", (commit,), start=index) for index in range(count)]
    return list(_together(_file_parts(source, path) for path in files(source)))


def documents(
    part: Part, recipe: Recipe, note: Callable[[str], None] = lambda _: None, workers: int = 1
) -> Iterator[Document | Flaw]:
    """What a part holds, in its order; `note` is told of each document that needed a decision."""
    match part.kind:
        case "docs":
            yield from docs.documents(part.source, workers)
        case "hub":
            name, config, _ = hub.named(part.source)
            rows = hub.rows(name, config, recipe.split, part.paths[0], part.start)
            yield from readers.texts(rows, recipe.text_column)
        case "text":
            for path in part.paths:
                yield from readers.text(Path(path), note)
        case "jsonl":
            yield from readers.jsonl(Path(part.paths[0]), recipe.text_column, part.start, part.stop)
        case "compressed":
            yield from readers.compressed_jsonl(Path(part.paths[0]), recipe.text_column)
        case "parquet":
            yield from readers.parquet(Path(part.paths[0]), recipe.text_column, part.start, part.stop)


def commits(named: Iterable[str]) -> dict[str, str]:
    """The commit that each Hub data set among these sources is at now."""
    return {source: hub.commit(source) for source in named if is_hub(source)}


def is_docs(source: str) -> bool:
    return source == "docs" or source.startswith("docs:")


def is_hub(source: str) -> bool:
    return source.startswith(hub.PREFIX)


def files(source: str, suffixes: tuple[str, ...] = SUFFIXES, setting: str = "tokenize.source") -> list[Path]:
    """The files of these kinds in a folder and those below it, or the one file that `source` names."""
    root = Path(source)
    if root.is_file():
        return [root]
    if not root.exists():
        raise KodaError(
            f"{setting} = {source!r} does not exist. It takes a file or a folder, `docs` (the "
            "documentation on this machine), or hub:USER/NAME (a data set on the Hugging Face Hub)."
        )

    def refuse(error: OSError) -> None:
        raise KodaError(f"{error.filename}: {error.strerror}. Every folder of {setting} must be readable.")

    found = sorted(
        Path(folder, name)
        for folder, _, names in os.walk(root, onerror=refuse)
        for name in names
        if name.endswith(suffixes)
    )
    if not found:
        raise KodaError(f"{setting} = {source!r} holds no text: no file there ends in {', '.join(suffixes)}.")
    return found


def _file_parts(source: str, path: Path) -> Iterator[Part]:
    name, paths = path.name, (str(path),)
    size = path.stat().st_size if path.exists() else 0
    if name.endswith((".jsonl.gz", ".jsonl.zst")):
        yield Part(source, "compressed", paths, size=size)
    elif name.endswith(".jsonl"):
        for start in range(0, max(size, 1), PART):
            yield Part(source, "jsonl", paths, start, start + PART, min(PART, size - start))
    elif name.endswith(".parquet"):
        yield from _parquet_parts(source, path, size)
    else:
        yield Part(source, "text", paths, size=size)


def _parquet_parts(source: str, path: Path, size: int) -> Iterator[Part]:
    """Row groups, as many together as make up a part; a file that cannot be opened is one: its reader says so."""
    try:
        metadata = pyarrow.parquet.read_metadata(path)
    except (OSError, pyarrow.ArrowInvalid):
        yield Part(source, "parquet", (str(path),), size=size)
        return
    sizes = [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]
    start = held = 0
    for group, bytes_ in enumerate(sizes):
        held += bytes_
        if held >= PART or group + 1 == len(sizes):
            yield Part(source, "parquet", (str(path),), start, group + 1, held * size // max(1, sum(sizes)))
            start, held = group + 1, 0


def _together(found: Iterable[Iterator[Part]]) -> Iterator[Part]:
    """Small text files, as many together as make up a part."""
    held: list[Part] = []

    def joined() -> Iterator[Part]:
        if held:
            paths = tuple(path for part in held for path in part.paths)
            yield Part(held[0].source, "text", paths, size=sum(part.size for part in held))
            held.clear()

    for file in found:
        for part in file:
            if part.kind != "text":
                yield from joined()
                yield part
                continue
            held.append(part)
            if len(held) == PART_FILES or sum(one.size for one in held) >= PART:
                yield from joined()
    yield from joined()
