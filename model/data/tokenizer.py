"""Byte-level BPE in GPT-2's form (Radford et al. 2019): trained here, loaded from files, or GPT-2's own."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from model.errors import KodaError
from model.files import sha256

END_OF_TEXT = "<|endoftext|>"
GPT2 = "openai-community/gpt2"
GPT2_FILES = {  # and the sha256 of the files that OpenAI published
    "vocab.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "merges.txt": "ac33235097fe06d4a8fff0feac994644809e6eb6ab70669e1e9fd40ae032428e",
}


def train(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """Learn a vocabulary of `vocab_size` entries; the first is `<|endoftext|>`."""
    tokenizer = gpt2_form(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def fingerprint(source: str) -> str:
    """The hashes of the files that `load` would read; empty for `train`. Raises KodaError where there are none."""
    if source == "train":
        return ""
    return " ".join(GPT2_FILES.values() if source == "gpt2" else map(sha256, _files(source)))


def _gpt2_files() -> tuple[Path, ...]:
    """GPT-2's own vocabulary from the Hub, or from the cache of an earlier download.

    Raises KodaError where it cannot be fetched or differs from the published files.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    paths = []
    for name, expected in GPT2_FILES.items():
        try:
            path = Path(hf_hub_download(GPT2, name, etag_timeout=10))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise KodaError(
                f"tokenize.tokenizer = 'gpt2': {name} of {GPT2} cannot be fetched ({type(error).__name__}). On a "
                f"machine with a network, run `hf download {GPT2} {' '.join(GPT2_FILES)} --local-dir FOLDER`; then set "
                "tokenize.tokenizer=FOLDER here."
            ) from None
        if sha256(path) != expected:
            raise KodaError(f"{path} is not the {name} that was published with GPT-2. Remove it and download it again.")
        paths.append(path)
    return tuple(paths)


def _files(source: str) -> tuple[Path, ...]:
    if source == "gpt2":
        return _gpt2_files()
    path = Path(source)
    pair = path / "vocab.json", path / "merges.txt"
    if all(file.is_file() for file in pair):
        return pair
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise KodaError(
            f"tokenize.tokenizer = {source!r}: no tokenizer there. Use `train`, `gpt2`, a tokenizer.json, or a folder "
            "with vocab.json and merges.txt."
        )
    return (file,)


def load(source: str) -> Tokenizer:
    """`gpt2`, a `tokenizer.json`, a folder with one, or a folder with GPT-2's `vocab.json` and `merges.txt`.

    Raises KodaError for anything else, and for one that is not byte-level BPE with an end-of-text token.
    """
    first, *second = _files(source)
    if second:
        tokenizer = gpt2_form(models.BPE.from_file(str(first), str(second[0])))
        tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    else:
        if not _is_gpt2(first):
            raise KodaError(
                f"tokenize.tokenizer = {source!r}: not byte-level BPE in GPT-2's form, the only kind the exports have."
            )
        tokenizer = Tokenizer.from_file(str(first))
    if tokenizer.token_to_id(END_OF_TEXT) is None:
        raise KodaError(f"tokenize.tokenizer = {source!r} has no {END_OF_TEXT} entry, which ends every document.")
    return tokenizer


def _is_gpt2(file: Path) -> bool:
    """Is it BPE after GPT-2's own pre-tokenizer, with no normalizer before it?"""
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        splitter = raw.get("pre_tokenizer") or {}
        return (
            raw["model"]["type"] == "BPE"
            and raw.get("normalizer") is None
            and (splitter.get("type"), splitter.get("use_regex", True)) == ("ByteLevel", True)
        )
    except (ValueError, KeyError, AttributeError, TypeError):
        return False


def gpt2_form(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def end_of_text(tokenizer: Tokenizer) -> int:
    """The id of the token that ends every document."""
    token = tokenizer.token_to_id(END_OF_TEXT)
    assert token is not None, "`train` and `load` return no tokenizer without it"
    return token


def encode_plain(tokenizer: Tokenizer, texts: Iterable[str]) -> list[list[int]]:
    """Token ids of each text as plain text: the letters `<|endoftext|>` in it do not become that token."""
    before = tokenizer.encode_special_tokens
    tokenizer.encode_special_tokens = True
    try:
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
    finally:
        tokenizer.encode_special_tokens = before
