"""Which of an answer's words are in the training text: the longest runs of tokens that it shares with the token shards.

Without an index: each token of the answer is compared with every token of the shards, from the last to the first, and
the length of the run that begins at each place is carried along. That takes no file beside the shards, the memory of
one piece of them, and time in proportion to both lengths.

Letters in names: N tokens of a piece, Q tokens of the answer.
"""

from typing import NamedTuple

import numpy as np

from model.data.shards import STARTS, Shards

PIECE = 4_000_000  # tokens that are searched at once; a run is at most as long as the answer, by which pieces overlap
LEAST = 6  # tokens; shorter runs are in any text


class Span(NamedTuple):
    """A run of an answer's tokens that is in the training text word for word."""

    start: int  # in the answer
    length: int  # tokens
    at: int  # in the text
    first: int  # where in the text the document begins that it is in
    stop: int  # and where it ends


def longest_spans(shards: Shards, answer_Q: np.ndarray, least: int = LEAST, most: int = 8) -> list[Span]:
    """The longest runs, the longest first; one place of each. Of one that overlaps a longer one, the rest is a run."""
    best_Q, where_Q = np.zeros(len(answer_Q), int), np.zeros(len(answer_Q), int)
    for first in range(0, len(shards), PIECE):
        piece_N = shards.read(first, min(PIECE + len(answer_Q), len(shards) - first))[0]
        for position, (length, at) in enumerate(_runs(piece_N, answer_Q)):
            if length > best_Q[position]:
                best_Q[position], where_Q[position] = length, first + at
    edges = _edges(shards)
    chosen: list[Span] = []
    covered_Q = np.zeros(len(answer_Q), bool)
    for start in np.argsort(-best_Q, kind="stable").tolist():
        length, at = int(best_Q[start]), int(where_Q[start])
        if length < least or len(chosen) == most:
            break
        free_Q = ~covered_Q[start : start + length]
        length = length if free_Q.all() else int(free_Q.argmin())  # up to where a longer run begins
        if length >= least:
            covered_Q[start : start + length] = True
            after = int(np.searchsorted(edges, at, side="right"))
            chosen.append(Span(start, length, at, int(edges[after - 1]), int(edges[after])))
    return sorted(chosen, key=lambda span: -span.length)


def _edges(shards: Shards) -> np.ndarray:
    """Where the documents or conversations begin in the whole text, and its length."""
    if shards.marks is None:
        starts = [edges[:-1] for edges in shards.documents()]
    else:
        starts = [np.flatnonzero(marks & STARTS) for marks in shards.marks]
    begin = [first + each for first, each in zip(shards.starts[:-1], starts, strict=True)]
    return np.concatenate([[0], *begin, [len(shards)]])


def _runs(piece_N: np.ndarray, answer_Q: np.ndarray) -> list[tuple[int, int]]:
    """For each token of the answer, the longest run that begins there: its length, and its first place in the piece."""
    run_N = np.zeros(len(piece_N) + 1, np.uint16)  # of the answer's next token, at each place
    longest = []
    for token in answer_Q[::-1]:
        run_N[:-1] = np.where(piece_N == token, run_N[1:] + 1, 0)
        run_N[-1] = 0
        at = int(run_N.argmax())
        longest.append((int(run_N[at]), at))
    return longest[::-1]
