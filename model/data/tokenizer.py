"""Byte-level BPE in GPT-2's form (Radford et al. 2019): trained here, or loaded from where it lies."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from model.errors import KodaError

END_OF_TEXT = "<|endoftext|>"


def train(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """Learn a vocabulary of `vocab_size` entries; the first is `<|endoftext|>`."""
    tokenizer = _gpt2(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load(source: str) -> Tokenizer:
    """A `tokenizer.json`, a folder with one, or a folder with GPT-2's `vocab.json` and `merges.txt`.

    Raises KodaError where there is none of these, or where it is not byte-level BPE with an end-of-text token.
    """
    path = Path(source)
    vocab, merges = path / "vocab.json", path / "merges.txt"
    if path.is_dir() and vocab.is_file() and merges.is_file():
        tokenizer = _gpt2(models.BPE.from_file(str(vocab), str(merges)))
        tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    else:
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise KodaError(
                f"tokenize.tokenizer = {source!r}: nothing to load there. It takes `train`, a tokenizer.json, or a "
                "folder with vocab.json and merges.txt."
            )
        if json.loads(file.read_text(encoding="utf-8")).get("model", {}).get("type") != "BPE":
            raise KodaError(f"tokenize.tokenizer = {source!r}: not a byte-level BPE, the only kind the exports carry.")
        tokenizer = Tokenizer.from_file(str(file))
    if tokenizer.token_to_id(END_OF_TEXT) is None:
        raise KodaError(f"tokenize.tokenizer = {source!r} has no {END_OF_TEXT} entry, which ends every document.")
    return tokenizer


def _gpt2(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def end_of_text(tokenizer: Tokenizer) -> int:
    """The id of the token that ends every document."""
    found = tokenizer.token_to_id(END_OF_TEXT)
    assert found is not None, "`train` and `load` give no tokenizer without it"
    return found


def encode_plain(tokenizer: Tokenizer, texts: Iterable[str]) -> list[list[int]]:
    """Token ids of texts as a document holds them: one that spells `<|endoftext|>` gets the letters, not the token."""
    before = tokenizer.encode_special_tokens
    tokenizer.encode_special_tokens = True
    try:
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
    finally:
        tokenizer.encode_special_tokens = before
