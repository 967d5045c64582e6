"""Plain text → token ids, for millions of documents.

`tiktoken` runs byte-level BPE about four times as fast as `tokenizers` on one core, with the same vocabulary. It merges
by the rank of the merged piece and not by the rank of the pair, which gives the same ids for a vocabulary that was
learned by merging. Koda verifies this: hard strings at the start, and a sample of every block of every corpus, are
encoded by both. Where they differ, `tokenizers` encodes the whole corpus.
"""

import json

import numpy as np
import tiktoken
from tokenizers import Tokenizer

from model.data.families import GPT2, family
from model.data.vocabulary import encode_plain

# GPT-2's pattern (Radford et al. 2019). The alternatives without look-ahead are in one group, which the regex engine
# runs as one automaton: 1.25 times as fast as tiktoken's own pattern for GPT-2.
PATTERN = r"(?:'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+)|\s+(?!\S)|\s+"
SAMPLE = 16_384  # characters of a block that both libraries encode

# Strings on which tokenizers are known to differ.
HARD = (
    "Hello world",
    "  two  spaces   and\ttabs\n\n\nlines ",
    "don't you'LL we're I'd",
    "naïve café Ångström ﬁne e\u0301",
    "日本語のテキスト、中文和한국어",
    "שלום עולם مرحبا بالعالم",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🙂",
    "x" * 300,
    " " * 100,
    "1234567890 3.14159 0x1F 1e-9",
    "def f(x):\n    return {'a': [1, 2], \"b\": x ** 2}  # done",
    "<|endoftext|> spelled out, </s> too",
    "\u00a0\u200b\u2028\ufeff",
    "nul \x00 and \x01\x7f",
    "हिन्दी में e\u0301\u0323\u0308 Z\u0351\u036b\u0343",
    "\r\n\r\n\t x\n \n  y",
)


class EncodersDiffer(Exception):
    """tiktoken and `tokenizers` encoded a text to different ids; the message names the text."""


class Encoder:
    """Encodes plain text: the letters `<|endoftext|>` in it do not become that token."""

    def __init__(self, tokenizer: Tokenizer, fast: bool = True):
        """`fast`: use tiktoken if it supports the vocabulary. Raises EncodersDiffer if hard strings differ."""
        self.tokenizer = tokenizer
        self._fast: tiktoken.Encoding | None = None
        self._ids = np.empty(0, np.uint32)  # by tiktoken's rank
        if fast:
            self._fast, self._ids = _tiktoken(tokenizer)
        for string in HARD:
            self.check(string, "a hard string")

    @property
    def name(self) -> str:
        """The library that encodes."""
        return "tokenizers" if self._fast is None else "tiktoken"

    def __call__(self, text: str) -> np.ndarray:
        """Token ids, `[tokens]` uint32. Raises UnicodeEncodeError for half of a surrogate pair."""
        if self._fast is not None:
            text.encode()  # tiktoken would replace half of a surrogate pair silently
            try:
                return self._ids[self._fast.encode_to_numpy(text, disallowed_special=())]
            except ValueError:  # tiktoken's regex engine fails on millions of consecutive white space characters
                pass
        return np.array(encode_plain(self.tokenizer, [text])[0], np.uint32)

    def check(self, text: str, name: str) -> None:
        """Encode a sample of `text` with both libraries. Raises EncodersDiffer where the ids differ."""
        sample = text[:SAMPLE]
        if self._fast is not None and self(sample).tolist() != encode_plain(self.tokenizer, [sample])[0]:
            raise EncodersDiffer(f"tiktoken and tokenizers encode {name} to different token ids")


def _tiktoken(tokenizer: Tokenizer) -> tuple[tiktoken.Encoding | None, np.ndarray]:
    """The vocabulary in tiktoken's form, and the id of each rank; None where it is not bytes and merges alone."""
    settings = json.loads(tokenizer.to_str())
    model = settings["model"]
    vocabulary: dict[str, int] = model["vocab"]
    letters = _letters()
    pieces = [*letters, *("".join(pair) for pair in model["merges"])]
    if not all(token["special"] for token in settings["added_tokens"]):
        return None, np.empty(0, np.uint32)  # `tokenizers` matches such tokens in plain text, before BPE
    if family(settings, "the tokenizer").pre != GPT2 or not all(piece in vocabulary for piece in pieces):
        return None, np.empty(0, np.uint32)
    pieces = list(dict.fromkeys(pieces))
    ranks = {bytes(letters[letter] for letter in piece): rank for rank, piece in enumerate(pieces)}
    ids = np.array([vocabulary[piece] for piece in pieces], np.uint32)
    return tiktoken.Encoding("koda", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={}), ids


def _letters() -> dict[str, int]:
    """Each byte by the printable letter that represents it in a byte-level vocabulary (GPT-2's `bytes_to_unicode`)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
