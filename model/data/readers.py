"""One function for each kind of file: path → documents, and a flaw for each input that is not a document.

Files are streamed where their format allows it, and no letter is ever replaced.
"""

import codecs
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow
import pyarrow.parquet
import zstandard

from model.data.decoding import END_OF_FILE, Undecodable, control_character, decoded, without_end_of_file
from model.data.document import EMPTY, Document, Flaw
from model.data.strings import lone_surrogate, shown

Documents = Iterator[Document | Flaw]
Row = tuple[str, dict[str, Any]]  # its place, and its columns
END = f"{END_OF_FILE}\r\n".encode()  # what may follow JSON


def text(path: Path, encoding: str, note: Callable[[str], None]) -> Documents:
    """A file that is one document, in UTF-8 or another `encoding` (decoding.py)."""
    name = shown(path)
    try:
        content, is_western = decoded(path.read_bytes(), encoding)
    except OSError as error:
        yield _unreadable(path, error)
    except Undecodable as error:
        yield Flaw(name, error.reason, error.detail)
    else:
        if is_western:
            note(f"{name} is not UTF-8 and was read as Windows-1252")
        yield document(name, content)


def jsonl(path: Path, column: str, start: int, stop: int) -> Documents:
    """The documents of a JSONL file in the lines that begin in bytes `start … stop`."""
    return texts(_lines(path, start, stop), column)


def compressed_jsonl(path: Path, column: str) -> Documents:
    """The documents of a `.jsonl.gz` or `.jsonl.zst`; a truncated file yields its complete lines and a flaw."""
    return texts(_compressed_lines(path), column)


def json_array(path: Path, column: str) -> Documents:
    """The documents of a `.json`: an array of objects, or an object in each line."""
    return texts(_json_rows(path), column)


def parquet(path: Path, column: str, start: int, stop: int) -> Documents:
    """The documents in row groups `start … stop` of a Parquet file."""
    return texts(_parquet_rows(path, [column], start, stop), column)


def rows(path: Path) -> Iterator[Row | Flaw]:
    """Every row of a JSONL (compressed or not), JSON or Parquet file, with all its columns."""
    if path.suffix.lower() in (".gz", ".zst"):
        return _compressed_lines(path)
    if path.suffix.lower() == ".json":
        return _json_rows(path)
    return _parquet_rows(path) if path.suffix.lower() == ".parquet" else _lines(path)


def _lines(path: Path, start: int = 0, stop: int | None = None) -> Iterator[Row | Flaw]:
    try:
        with path.open("rb") as file:
            if start and stop is not None:  # the line that contains the byte before belongs to the part before
                file.seek(start - 1)
                rest = file.readline(stop - start + 1)
                if not rest.endswith(b"\n"):
                    return  # no line begins here
                start += len(rest) - 1
            yield from _objects(file, shown(path), start, stop)
    except OSError as error:
        yield _unreadable(path, error)


def _compressed_lines(path: Path) -> Iterator[Row | Flaw]:
    try:
        with path.open("rb") as raw:
            stream = _Decompressed(raw, _gzip if path.suffix.lower() == ".gz" else _zstandard)
            with io.BufferedReader(stream, 1 << 17) as file:
                yield from _objects(file, shown(path), 0, None)
    except EOFError:
        yield Flaw(shown(path), "truncated", "it is incomplete; it was cut short when it was written or copied")
    except (zlib.error, zstandard.ZstdError) as error:
        yield Flaw(shown(path), "damaged", f"it cannot be decompressed ({error})")
    except OSError as error:
        yield _unreadable(path, error)


def _json_rows(path: Path) -> Iterator[Row | Flaw]:
    try:
        with path.open("rb") as file:
            is_array = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
        if not is_array:
            yield from _lines(path)
            return
        for number, row in enumerate(json.loads(path.read_bytes().rstrip(END).decode("utf-8-sig"))):
            name = f"{shown(path)}, row {number}"
            yield (name, row) if isinstance(row, dict) else Flaw(name, "not_json", "it is not a JSON object")
    except UnicodeDecodeError as error:
        yield Flaw(shown(path), "not_utf8", f"it is not UTF-8: byte {error.start} is {error.object[error.start]:#x}")
    except (ValueError, RecursionError) as error:
        yield Flaw(shown(path), "not_json", f"it is not an array of JSON ({error})")
    except OSError as error:
        yield _unreadable(path, error)


def _parquet_rows(
    path: Path, columns: list[str] | None = None, start: int = 0, stop: int | None = None
) -> Iterator[Row | Flaw]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if missing := set(columns or ()) - set(names):
                yield no_column(shown(path), missing.pop(), names)
                return
            groups = range(start, file.num_row_groups if stop is None else stop)
            number = sum(file.metadata.row_group(group).num_rows for group in range(start))
            for batch in file.iter_batches(256, list(groups), columns):
                for row in range(batch.num_rows):
                    name = f"{shown(path)}, row {number + row}"
                    try:
                        yield name, batch.slice(row, 1).to_pylist()[0]
                    except UnicodeDecodeError as error:
                        yield Flaw(
                            name,
                            "not_utf8",
                            f"it is not UTF-8: byte {error.start} of its text is {error.object[error.start]:#x}",
                        )
                number += batch.num_rows
    except pyarrow.ArrowException as error:
        yield Flaw(shown(path), "damaged", f"it is not a complete Parquet file ({str(error).splitlines()[0]})")
    except OSError as error:
        yield _unreadable(path, error)


def texts(rows: Iterable[Row | Flaw], column: str) -> Documents:
    """The documents in a column of rows."""
    for item in rows:
        if isinstance(item, Flaw):
            yield item
        else:
            name, row = item
            yield cell(name, column, row[column]) if column in row else no_column(name, column, list(row))


def cell(name: str, column: str, value: object) -> Document | Flaw:
    """The document in a row's text column, or a flaw."""
    if not isinstance(value, str):
        return Flaw(name, "no_text", f"its {column!r} is {type(value).__name__}, not a string")
    return document(name, value)


def document(name: str, content: str) -> Document | Flaw:
    """A text as a document; a flaw if it is empty, cannot be encoded in UTF-8, or has control characters."""
    content = without_end_of_file(content)
    if not content or content.isspace():
        return Flaw(name, EMPTY, "there is no text in it")
    if detail := lone_surrogate(content):
        return Flaw(name, "lone_surrogate", detail)
    if detail := control_character(content, content.encode()):
        return Flaw(name, "not_text", detail)
    return Document(name, content)


def no_column(name: str, column: str, names: list[str]) -> Flaw:
    return Flaw(name, "no_column", f"it has no column {column!r}, only {', '.join(sorted(names))}")


def _objects(file: BinaryIO, path: str, position: int, stop: int | None) -> Iterator[Row | Flaw]:
    """JSON objects, one in each line, from byte `position` to the last line that begins before `stop`."""
    for line in file:
        if stop is not None and position >= stop:
            return
        name, position = f"{path}, byte {position}", position + len(line)
        line = line.rstrip(END)
        try:
            row = json.loads(line.decode("utf-8-sig"))  # a byte order mark begins the file, or one that was appended
        except UnicodeDecodeError as error:
            yield Flaw(name, "not_utf8", f"it is not UTF-8: byte {error.start} of the line is {line[error.start]:#x}")
        except (ValueError, RecursionError) as error:
            if line.removeprefix(codecs.BOM_UTF8).strip():
                yield Flaw(name, "not_json", f"the line is not JSON ({error})")
        else:
            yield (name, row) if isinstance(row, dict) else Flaw(name, "not_json", "the line is not a JSON object")


def _unreadable(path: Path, error: OSError) -> Flaw:
    return Flaw(shown(path), "unreadable", error.strerror or str(error))


class _Decompressed(io.RawIOBase):
    """The content of gzip or Zstandard frames. Raises EOFError at the end where the last frame is incomplete."""

    def __init__(self, file: BinaryIO, decompressor: Callable[[], Any]):
        self._file, self._decompressor = file, decompressor
        self._frame: Any = None
        self._rest = b""  # compressed bytes that were read, after the end of the last frame
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]  # any writable buffer
        while not self._ready:
            piece = self._rest or self._file.read(1 << 17)
            if not piece:
                if self._frame is not None:
                    raise EOFError
                return 0
            self._frame = self._frame or self._decompressor()
            self._ready = memoryview(self._frame.decompress(piece))
            self._rest = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


def _gzip() -> Any:
    return zlib.decompressobj(31)  # the gzip format


def _zstandard() -> Any:
    return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
