"""Which languages is a text in? Recognised by py3langid, whose model comes with it."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from model.data import tokenizer as tokenizers
from model.data.shards import Shards

PIECES, PIECE = 64, 256  # how many pieces of a text are looked at, evenly spread, and the tokens of each
CONFIDENT = 0.9  # probability from which a piece counts as recognised
KNOWN = 0.5  # share of the pieces that must be, so that anything is stated
SHARE = 0.1  # of the pieces, from which a language is one of the text's
NOT_LANGUAGE = "zxx"  # ISO 639's code for it: numbers, tables, noise


def of_shards(folder: Path, tokenizer: Path) -> list[str]:
    """The languages of a folder of token shards, as `languages` has them."""
    shards, decode = Shards(folder), tokenizers.load(str(tokenizer)).tokenizer.decode
    length = min(PIECE, len(shards))
    starts = range(0, len(shards) - length + 1, max(1, (len(shards) - length) // PIECES))
    return languages(decode(shards.read(start, length)[0].tolist()).strip("\ufffd") for start in starts)


def languages(pieces: Iterable[str]) -> list[str]:
    """The languages of a text by ISO 639's codes, the most frequent first; none where too little is recognised."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # here, as its model takes a second to load

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    recognised = [identifier.classify(piece) for piece in pieces]
    counts = Counter(code for code, probability in recognised if probability >= CONFIDENT and code != NOT_LANGUAGE)
    if counts.total() < KNOWN * len(recognised):
        return []
    return [code for code, count in counts.most_common() if count >= SHARE * len(recognised)]
