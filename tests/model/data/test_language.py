"""The languages of a text: recognised where that is certain, and not guessed where it is not."""

import hashlib
from pathlib import Path

import pytest

from model.data import language
from model.data import tokenizer as tokenizers
from model.data.shards import ShardWriter

GERMAN = (
    "Der Hafen war still, als am Morgen die ersten Boote zurückkamen. Niemand hatte sie vor dem Mittag erwartet, und "
    "die Frauen, die am Ufer die Netze flickten, sahen überrascht auf. Es war ein kalter Frühling gewesen. "
)
ENGLISH = "The harbour was quiet when the first boats came back in the morning. Nobody had expected them before noon. "
RUSSIAN = "В гавани было тихо, когда утром вернулись первые лодки. Никто не ждал их раньше полудня, и улов был мал. "
CHINESE = "清晨第一批渔船回来的时候，港口很安静。没有人料到它们会在中午之前回来，补网的妇女们惊讶地抬起头来。"
FRENCH = "Le port était calme quand les premiers bateaux sont revenus au matin. Personne ne les attendait avant midi. "
PYTHON = "def add(self, item):\n    for key, value in self.items.items():\n        self.total[key] += value\n"
NUMBERS = "1.5, 2.5, 3.5; 0x7f 0xff\n" * 20
HASHES = " ".join(hashlib.sha256(bytes([n])).hexdigest() for n in range(20))  # certainly in no language


@pytest.mark.parametrize(
    ("pieces", "codes"),
    [
        ([GERMAN] * 9, ["de"]),
        ([RUSSIAN, CHINESE, CHINESE, FRENCH, FRENCH, FRENCH], ["fr", "zh", "ru"]),
        ([ENGLISH] * 6 + [GERMAN] * 3, ["en", "de"]),
        ([ENGLISH] * 60 + [GERMAN] * 5, ["en"]),  # a few quotations
        ([GERMAN] * 5 + [NUMBERS] * 4, ["de"]),
        ([GERMAN] * 4 + [NUMBERS] * 9, []),
        ([PYTHON] * 9, []),
        (["Ja.", "Yes, of course.", "hello"], []),
        ([NUMBERS], []),
        ([HASHES] * 9, []),
        ([], []),
    ],
    ids=[
        "German",
        "three",
        "two",
        "one of two",
        "half numbers",
        "numbers",
        "code",
        "short",
        "none",
        "hashes",
        "nothing",
    ],
)
def test_languages_are_named_by_frequency_and_only_where_they_are_certain(pieces: list[str], codes: list[str]) -> None:
    assert language.languages(pieces) == codes


@pytest.mark.parametrize("length", [1, 500, 40_000], ids="{}".format)
def test_languages_of_shards_are_those_of_their_text(tokenizer_file: Path, tmp_path: Path, length: int) -> None:
    """In a vocabulary that was learned on another language, whose tokens are often parts of letters."""
    vocabulary = tokenizers.load(str(tokenizer_file))
    writer = ShardWriter(tmp_path / "heldout", vocabulary.size, 10_000)
    writer.add((vocabulary.plain(GERMAN) * (length // 100 + 1))[:length])
    writer.close()
    assert language.of_shards(tmp_path / "heldout", tokenizer_file) == (["de"] if length > 1 else [])
