from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data import encoder as encoders
from model.data import tokenizer as tokenizers
from model.data.encoder import HARD, Encoder, EncodersDiffer

LONG = {
    "a megabyte without a space": "abcd" * 250_000,
    "letters of three bytes": "日本" * 200_000,
    "a megabyte of spaces": " " * 1_000_000,
    "more white space than tiktoken takes": "\n" * 5_000_000 + "x",
}


@pytest.fixture(scope="module")
def encoder(tokenizer_file: Path) -> Encoder:
    made = Encoder(tokenizers.load(str(tokenizer_file)))
    assert made.name == "tiktoken"
    return made


@pytest.mark.parametrize("text", [*HARD, *LONG.values()], ids=lambda text: repr(text[:20]))
def test_the_ids_are_those_of_tokenizers_and_lead_back(encoder: Encoder, text: str) -> None:
    ids = encoder(text).tolist()
    assert ids == tokenizers.encode_plain(encoder.tokenizer, [text])[0]
    assert encoder.tokenizer.decode(ids, skip_special_tokens=False) == text


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_gets_the_ids_of_tokenizers(encoder: Encoder, text: str) -> None:
    assert encoder(text).tolist() == tokenizers.encode_plain(encoder.tokenizer, [text])[0]


def test_half_a_surrogate_pair_is_refused_and_not_replaced(encoder: Encoder) -> None:
    with pytest.raises(UnicodeEncodeError):
        encoder("half \ud83d")


def test_text_that_spells_the_end_is_not_the_end(encoder: Encoder) -> None:
    assert tokenizers.end_of_text(encoder.tokenizer) not in encoder("a <|endoftext|> b").tolist()


def test_a_pattern_that_splits_otherwise_is_noticed(tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "PATTERN", r"\S+|\s+")
    with pytest.raises(EncodersDiffer, match="other token ids"):
        Encoder(tokenizers.load(str(tokenizer_file)))
    assert Encoder(tokenizers.load(str(tokenizer_file)), fast=False).name == "tokenizers"


def test_the_ids_are_those_of_transformers_and_llama_cpp(tokenizer_file: Path, tmp_path: Path) -> None:
    """Both read the vocabulary from what Koda exports, and know nothing of how it encodes."""
    from flax import nnx

    from model.export import gguf, hf
    from model.export.about import About
    from model.export.runtimes import HuggingFace, LlamaCpp
    from model.llama import Llama
    from model.weights import stored
    from tests.conftest import SHAPE

    shape = SHAPE.__class__(**{**SHAPE.__dict__, "vocab_size": 512})
    weights = Llama(shape, rngs=nnx.Rngs(0))
    hf.write(tmp_path / "hf", stored(weights), tokenizer_file, "float32")
    gguf.write(tmp_path / "model.gguf", stored(weights), tokenizer_file, "F16", About("test"))
    encoder = Encoder(tokenizers.load(str(tokenizer_file)))
    for runtime in (HuggingFace(tmp_path / "hf"), LlamaCpp(tmp_path / "model.gguf", 64)):
        for text in (*HARD, "abcd" * 25_000):
            assert runtime.tokenize(text) == encoder(text).tolist(), (runtime, text[:40])
