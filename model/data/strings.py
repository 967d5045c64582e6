"""Strings: those in a value as JSON and Parquet have it, what cannot be encoded in them, and names of files."""

import os
from collections.abc import Iterator
from typing import Any


def strings(value: Any) -> Iterator[str]:
    """Every string in lists and in the values of dicts, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from strings(inner)


def lone_surrogate(text: str) -> str:
    """Where a text has half of a surrogate pair, which no encoding can write; empty if it has none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"character {error.start} is half of a surrogate pair (\\u{ord(text[error.start]):04x})"
    return ""


def shown(path: str | os.PathLike[str]) -> str:
    """A path as text; a byte of it that is not UTF-8 becomes `\\xe9`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
