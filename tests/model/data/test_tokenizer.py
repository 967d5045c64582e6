import json
from pathlib import Path

import pytest

from model.data import tokenizer as tokenizers
from model.errors import KodaError
from model.export.parity import HARD


def test_hard_strings_round_trip(tokenizer_file: Path) -> None:
    tokenizer = tokenizers.load(str(tokenizer_file))
    for text in (*HARD, "\x00", "a" * 100_000):
        ids = tokenizers.encode_plain(tokenizer, [text])[0]
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_text_that_spells_the_end_is_not_the_end(tokenizer_file: Path) -> None:
    tokenizer = tokenizers.load(str(tokenizer_file))
    end = tokenizers.end_of_text(tokenizer)
    assert end not in tokenizers.encode_plain(tokenizer, ["a <|endoftext|> b"])[0]
    assert tokenizer.encode("<|endoftext|>").ids == [end]


def test_vocab_and_merges_give_the_same_tokenizer(tokenizer_file: Path, tmp_path: Path, prose: str) -> None:
    raw = json.loads(tokenizer_file.read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(raw["model"]["vocab"]))
    merges = ["#version: 0.2", *(" ".join(m) for m in raw["model"]["merges"])]
    (tmp_path / "merges.txt").write_text("\n".join(merges) + "\n")
    one, other = tokenizers.load(str(tmp_path)), tokenizers.load(str(tokenizer_file))
    texts = [*HARD, prose[:20_000]]
    assert tokenizers.encode_plain(one, texts) == tokenizers.encode_plain(other, texts)
    assert tokenizers.end_of_text(one) == tokenizers.end_of_text(other)


@pytest.mark.parametrize("content", ["{}", '{"model": {"type": "Unigram"}}'])
def test_another_kind_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(KodaError, match="byte-level BPE"):
        tokenizers.load(str(tmp_path))


def test_nothing_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KodaError, match="nothing to load there"):
        tokenizers.load(str(tmp_path / "nowhere"))
