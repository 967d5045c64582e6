"""Token ids as the pieces of text that people read."""

from collections.abc import Sequence

from model.data.vocabulary import Vocabulary


def pieces_of(vocabulary: Vocabulary, ids: Sequence[int]) -> list[str]:
    """The text of each token where it is; together they are the whole text. A token that is part of a letter is �."""
    pieces, before = [], ""
    for count in range(1, len(ids) + 1):
        text = vocabulary.tokenizer.decode([*ids[:count]], skip_special_tokens=False)
        piece = text[len(before) :] if text.startswith(before) else text[-1:]
        pieces.append(piece)
        before = text
    return pieces
