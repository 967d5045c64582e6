"""What every source yields and everything downstream of a source takes."""

from typing import NamedTuple


class Document(NamedTuple):
    """A text and where it came from: a module's name, a file's path, or a file's path and line."""

    name: str
    text: str
