from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data import encoder as encoders
from model.data import tokenizer as tokenizers
from model.data.encoder import HARD, Encoder, EncodersDiffer
from model.data.vocabulary import encode_plain

LONG = {
    "a megabyte without a space": "abcd" * 250_000,
    "letters of three bytes": "日本" * 200_000,
    "a megabyte of spaces": " " * 1_000_000,
    "more white space than tiktoken accepts": "\n" * 5_000_000 + "x",
}


@pytest.fixture(scope="module")
def encoder(tokenizer_file: Path) -> Encoder:
    encoder = Encoder(tokenizers.load(str(tokenizer_file)).tokenizer)
    assert encoder.name == "tiktoken"
    return encoder


@pytest.mark.parametrize("text", [*HARD, *LONG.values()], ids=lambda text: repr(text[:20]))
def test_the_ids_equal_those_of_tokenizers_and_decode_to_the_text(encoder: Encoder, text: str) -> None:
    ids = encoder(text).tolist()
    assert ids == encode_plain(encoder.tokenizer, [text])[0]
    assert encoder.tokenizer.decode(ids, skip_special_tokens=False) == text


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_has_the_ids_of_tokenizers(encoder: Encoder, text: str) -> None:
    assert encoder(text).tolist() == encode_plain(encoder.tokenizer, [text])[0]


def test_half_of_a_surrogate_pair_is_refused_and_not_replaced(encoder: Encoder) -> None:
    with pytest.raises(UnicodeEncodeError):
        encoder("half \ud83d")


def test_the_letters_of_the_end_token_are_not_the_end_token(encoder: Encoder) -> None:
    assert encoder.tokenizer.token_to_id("<|endoftext|>") not in encoder("a <|endoftext|> b").tolist()


def test_a_pattern_that_splits_differently_is_detected(tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "PATTERN", r"\S+|\s+")
    with pytest.raises(EncodersDiffer, match="different token ids"):
        Encoder(tokenizers.load(str(tokenizer_file)).tokenizer)
    assert Encoder(tokenizers.load(str(tokenizer_file)).tokenizer, fast=False).name == "tokenizers"


def test_transformers_and_llama_cpp_encode_to_the_same_ids(tokenizer_file: Path, tmp_path: Path) -> None:
    """Both read the vocabulary from Koda's exports and use their own code."""
    from flax import nnx

    from model.export import gguf_file
    from model.export.about import About
    from model.export.formats import hf
    from model.export.formats.gguf import LlamaCpp
    from model.export.formats.hf import Transformers
    from model.llama import Llama
    from model.weights import stored
    from tests.conftest import SHAPE

    shape = SHAPE.__class__(**{**SHAPE.__dict__, "vocab_size": 512})
    weights = Llama(shape, rngs=nnx.Rngs(0))
    vocabulary = tokenizers.load(str(tokenizer_file))
    hf.write(tmp_path / "hf", stored(weights), vocabulary, "float32")
    gguf_file.write(tmp_path / "model.gguf", stored(weights), vocabulary, "F16", About("test"))
    encoder = Encoder(vocabulary.tokenizer)
    for runtime in (Transformers(tmp_path / "hf"), LlamaCpp(tmp_path / "model.gguf", 64)):
        for text in (*HARD, "abcd" * 25_000):
            assert runtime.tokenize(text) == encoder(text).tolist(), (runtime, text[:40])
