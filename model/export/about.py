"""What an exported file states about itself, beside its numbers."""

from typing import NamedTuple


class About(NamedTuple):
    """Whose model it is, and of what."""

    name: str
    author: str = ""
    license: str = ""
    """An identifier of the Hub or of SPDX."""
    url: str = ""
    datasets: tuple[str, ...] = ()
    """What it was trained on, by name."""
