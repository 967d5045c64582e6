"""A document: what every source yields and every later step takes."""

from typing import NamedTuple


class Document(NamedTuple):
    """A text and where it comes from: a dotted name, a file's path, or a file's path and the line's first byte."""

    name: str
    text: str


class _Flaw(NamedTuple):
    name: str
    reason: str
    detail: str


class Flaw(_Flaw):
    """Input that is not a document: where it is, a reason to count it by, and the detail."""

    def __new__(cls, name: str, reason: str, detail: str) -> "Flaw":
        return super().__new__(cls, printable(name), reason, printable(detail))


def printable(text: str) -> str:
    """A text that can be written: half of a surrogate pair, as JSON's keys may have it, becomes `\\ud83d`."""
    return text.encode("utf-8", "backslashreplace").decode()


# The reasons of flaws that need no fix: they are counted and never refused.
EMPTY, DELETED, ORPHAN, REPEATED = "empty", "deleted", "orphan", "repeated"
COUNTED = frozenset({EMPTY, DELETED, ORPHAN, REPEATED})
