"""Token ids as the pieces of text that people read."""

from collections.abc import Sequence

from model.data.vocabulary import Vocabulary

PART = "�"  # what a decoder makes of bytes that are no letter


def pieces_of(vocabulary: Vocabulary, ids: Sequence[int]) -> list[str]:
    """The text of each token where it is, so that they are the whole text together; a token that ends inside a letter
    is �, and the one that completes the letter has it."""
    pieces, whole = [], ""
    for count in range(1, len(ids) + 1):
        text = vocabulary.tokenizer.decode([*ids[:count]], skip_special_tokens=False).rstrip(PART)
        pieces.append(text[len(whole) :] or PART)
        whole = text
    return pieces
