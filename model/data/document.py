"""What every source yields and everything downstream of a source takes."""

from typing import NamedTuple


class Document(NamedTuple):
    """A text and where it came from: a module's name, a file's path, or a file's path and the line's first byte."""

    name: str
    text: str


class Flaw(NamedTuple):
    """Something in a source that is no document: where it is, why (a word to count it by), and what exactly."""

    name: str
    reason: str
    detail: str


# A flaw that nobody has to mend: it is counted, and never refused.
EMPTY = "empty"
