"""A document: what every source yields and every later step takes."""

from typing import NamedTuple


class Document(NamedTuple):
    """A text and where it comes from: a dotted name, a file's path, or a file's path and the line's first byte."""

    name: str
    text: str


class Flaw(NamedTuple):
    """Input that is not a document: where it is, a reason to count it by, and the detail."""

    name: str
    reason: str
    detail: str


# The reasons of flaws that need no fix: they are counted and never refused.
EMPTY, DELETED, ORPHAN, REPEATED = "empty", "deleted", "orphan", "repeated"
COUNTED = frozenset({EMPTY, DELETED, ORPHAN, REPEATED})
