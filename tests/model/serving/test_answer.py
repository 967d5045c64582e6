"""Stop strings, token by token."""

import pytest

from model.export.runtime import Token
from model.serving.answer import Cutter


def shown(stops: list[str], *texts: str) -> list[str]:
    """The text of each piece, up to the stop string or the end."""
    cutter, pieces = Cutter(stops), []
    for text in texts:
        pieces.append(cutter.add(Token(text)).text)
        if cutter.found:
            return pieces
    return [*pieces, cutter.rest().text]


@pytest.mark.parametrize(
    ("stops", "texts", "expected"),
    [
        ([], ["a", "b"], ["a", "b", ""]),
        (["END"], ["one E", "N", "D two"], ["one ", "", ""]),  # across tokens
        (["END"], ["one E", "N", "ough"], ["one ", "", "ENough", ""]),  # it was the beginning of another word
        (["END"], ["one EN"], ["one ", "EN"]),  # and here of nothing
        (["aab"], ["a", "aa", "b!"], ["", "a", ""]),  # it begins where a failed one had begun
        (["two", "one"], ["a one two"], ["a "]),  # the first in the text
        (["\n\n", "\n"], ["a\n", "\nb"], ["a"]),
        (["a"], ["", "", "a"], ["", "", ""]),
    ],
)
def test_text_is_shown_up_to_the_first_stop_string(stops: list[str], texts: list[str], expected: list[str]) -> None:
    assert shown(stops, *texts) == expected


def test_tokens_come_with_the_text_that_begins_in_them() -> None:
    cutter = Cutter(["END"])
    tokens = [Token("one"), Token(" E"), Token(""), Token("x"), Token(" EN"), Token("D"), Token("y")]
    pieces = [cutter.add(token) for token in tokens[:6]]
    assert [piece.text for piece in pieces] == ["one", " ", "", "Ex", " ", ""]
    assert [piece.tokens for piece in pieces] == [tokens[:1], tokens[1:2], [], tokens[2:4], tokens[4:5], []]
    assert cutter.found


def test_token_that_ends_the_answer_is_in_no_piece() -> None:
    cutter = Cutter([])
    assert cutter.add(Token("", ends=True)).tokens == [] and cutter.rest().tokens == []
