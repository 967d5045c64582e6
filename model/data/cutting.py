"""Long documents → pieces that are documents of their own.

A corpus in one file is one document, which cannot be in both parts; its pieces can. Text that is not held out stays
together: consecutive pieces of the training part are one document, so that it ends only where the text was cut out.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Literal

from model.data.document import EMPTY, Document, Flaw
from model.data.heldout import is_heldout
from model.data.special import END_OF_TEXT

Cut = Literal["auto", "never", "endoftext", "paragraphs"]
CUTS: tuple[Cut, ...] = ("never", "endoftext", "paragraphs")  # what `auto` tries; each cuts where those before it do
PIECE = 2000  # characters: the least that a piece has
LONGEST = 3 * PIECE  # characters: a longer text is cut
EMPTY_LINES = re.compile(r"(?:[ \t]*\r?\n)*")
# The ends of a paragraph, of a line, of a sentence, of a word. A piece ends at the first that there is.
ENDS = tuple(map(re.compile, (r"\n(?:[ \t\r]*\n)+", r"\n", r"[.!?][\"'”’)]*\s+|[。！？][」』”]?", r"\s+")))


def cut(documents: Iterable[Document | Flaw], where: Cut, heldout_fraction: float) -> Iterator[Document | Flaw]:
    """The documents, cut; a piece is named by the character of the document at which it begins. `auto` is no place."""
    assert where != "auto"
    if where == "never":
        yield from documents
        return
    for item in documents:
        if isinstance(item, Flaw):
            yield item
            continue
        pieces = [
            (start + offset, piece)
            for start, text in _between_markers(item.text)
            for offset, piece in (_paragraphs(text, heldout_fraction) if where == "paragraphs" else [(0, text)])
        ]
        if not pieces:
            yield Flaw(item.name, EMPTY, "there is no text in it")
        for start, piece in pieces:
            yield Document(item.name if len(piece) == len(item.text) else f"{item.name}, character {start}", piece)


def markers(text: str) -> int:
    """How often a text has the marker."""
    return text.count(END_OF_TEXT)


def _between_markers(text: str) -> Iterator[tuple[int, str]]:
    """The texts between markers, without the white space around those, and where each begins; no empty ones."""
    start = 0
    while (end := text.find(END_OF_TEXT, start)) >= 0:
        if piece := text[start:end].rstrip():
            yield start, piece
        after = EMPTY_LINES.match(text, end + len(END_OF_TEXT))
        assert after is not None
        start = after.end()
    if (piece := text[start:]) and not piece.isspace():
        yield start, piece


def _paragraphs(text: str, heldout_fraction: float) -> Iterator[tuple[int, str]]:
    """A long text as held-out pieces and what is between them, in order: joined, they are the text."""
    start, training = 0, list[str]()
    for piece in _pieces(text):
        if not is_heldout(piece, heldout_fraction):
            training.append(piece)
            continue
        for joined in [*_joined(training, heldout_fraction), piece]:
            yield start, joined
            start += len(joined)
        training = []
    for joined in _joined(training, heldout_fraction):
        yield start, joined
        start += len(joined)


def _joined(pieces: list[str], heldout_fraction: float) -> Iterator[str]:
    """Consecutive pieces of the training part as one document; as more where the hash of one would hold it out."""
    if not pieces:
        return
    joined = "".join(pieces)
    if len(pieces) > 1 and is_heldout(joined, heldout_fraction):
        yield from _joined(pieces[: len(pieces) // 2], heldout_fraction)
        yield from _joined(pieces[len(pieces) // 2 :], heldout_fraction)
    else:
        yield joined


def _pieces(text: str) -> Iterator[str]:
    """The text cut at the best place in each PIECE … 2 × PIECE characters; whole if it is not longer than LONGEST."""
    start = 0
    while len(text) - start > LONGEST:
        first, last = start + PIECE, start + 2 * PIECE
        end = next((match.end() for pattern in ENDS if (match := pattern.search(text, first, last))), last)
        yield text[start:end]
        start = end
    yield text[start:]
