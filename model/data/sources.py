"""Where text comes from: the setting `tokenize.source`, told apart by its form."""

from collections.abc import Callable, Iterator
from pathlib import Path

from model.data import docs
from model.data.document import Document
from model.errors import KodaError

SUFFIXES = (".txt", ".md")
CONTROL = frozenset(range(32)) - frozenset(b"\t\n\r\f\x1b")


def fingerprint(source: str) -> str:
    """What the source holds, cheaply: versions for `docs`; names, sizes and times of change for files."""
    if is_docs(source):
        return docs.fingerprint(source)
    facts = ((path.relative_to(source), path.stat()) for path in files(source))
    return "\n".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in facts)


def documents(source: str, workers: int, note: Callable[[str], None]) -> Iterator[Document]:
    """All documents of a source in one order; `note` is told of each one that needed a decision.

    Raises KodaError for a source that is missing, holds no text, or holds a file that is not text.
    """
    if is_docs(source):
        yield from docs.documents(source, workers)
        return
    for path in files(source):
        text = read_text(path, note)
        if text.strip():
            yield Document(str(path), text)
        else:
            note(f"{path} is empty and was left out")


def is_docs(source: str) -> bool:
    return source == "docs" or source.startswith("docs:")


def files(source: str) -> list[Path]:
    """The text files of a folder and those below it, or the one file that `source` names."""
    root = Path(source)
    if root.is_file():
        return [root]
    if not root.exists():
        raise KodaError(
            f"tokenize.source = {source!r} does not exist. "
            "It takes `docs` (the documentation on this machine), a file, or a folder of text."
        )
    found = sorted(path for path in root.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    if not found:
        raise KodaError(f"tokenize.source = {source!r} holds no text: no file there ends in {' or '.join(SUFFIXES)}.")
    return found


def read_text(path: Path, note: Callable[[str], None]) -> str:
    """A file as text: UTF-8, or Windows-1252 (which holds Latin-1's letters), said by name. Never a replaced letter."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise KodaError(f"{path}: {error.strerror}. Every file of tokenize.source must be readable.") from None
    if any(byte in CONTROL for byte in raw[:65536]):
        raise KodaError(f"{path} is not text: it holds control bytes. Take it out of tokenize.source.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        try:
            text = raw.decode("cp1252")
        except UnicodeDecodeError:
            raise KodaError(
                f"{path} is neither UTF-8 nor Windows-1252 (byte {error.start} is {raw[error.start]:#x}). "
                "Convert it to UTF-8, or take it out of tokenize.source."
            ) from None
        note(f"{path} is not UTF-8 and was read as Windows-1252")
        return text
