"""Plain text to token ids, for documents by the million.

`tiktoken` runs byte-level BPE about four times as fast as `tokenizers` does on one core, from the same vocabulary. It
merges by the rank of what two pieces become and not by the rank of the pair, which gives the same ids for a vocabulary
that was learned by merging; this is not taken on trust: hard strings when it is made, and a sample of every block of
every corpus, are encoded by both. Where they differ, `tokenizers` encodes all of it.
"""

import json

import numpy as np
import tiktoken
from tokenizers import Tokenizer

from model.data.tokenizer import encode_plain

# GPT-2's pattern (Radford et al. 2019). What needs no look-ahead stands in one group, which the regex engine then runs
# as one automaton: 1.25 times as fast as the pattern that tiktoken itself has for GPT-2.
PATTERN = r"(?:'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+)|\s+(?!\S)|\s+"
SAMPLE = 16_384  # characters of a block that both encode

# Strings on which tokenizers are known to part ways.
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
    """tiktoken gave other ids than `tokenizers` did; the message says where."""


class Encoder:
    """Token ids of texts as a document holds them: one that spells `<|endoftext|>` gets the letters, not the token."""

    def __init__(self, tokenizer: Tokenizer, fast: bool = True):
        """`fast`: with tiktoken, if the vocabulary can be given to it. Raises EncodersDiffer if hard strings differ."""
        self.tokenizer = tokenizer
        self._fast: tiktoken.Encoding | None = None
        self._ids = np.empty(0, np.uint32)  # of tiktoken's ranks
        if fast:
            self._fast, self._ids = _tiktoken(tokenizer)
        for string in HARD:
            self.check(string, "a hard string")

    @property
    def name(self) -> str:
        """Whose code encodes."""
        return "tokenizers" if self._fast is None else "tiktoken"

    def __call__(self, text: str) -> np.ndarray:
        """`[tokens]` uint32. The text must be UTF-8's, without half surrogates (UnicodeEncodeError)."""
        if self._fast is not None:
            text.encode()  # tiktoken would replace half a surrogate pair without a word
            try:
                return self._ids[self._fast.encode_to_numpy(text, disallowed_special=())]
            except ValueError:  # a run of white space by the million: its regex engine gives up
                pass
        return np.array(encode_plain(self.tokenizer, [text])[0], np.uint32)

    def check(self, text: str, name: str) -> None:
        """Encode a sample of `text` both ways; raises EncodersDiffer where that gives two results."""
        sample = text[:SAMPLE]
        if self._fast is not None and self(sample).tolist() != encode_plain(self.tokenizer, [sample])[0]:
            raise EncodersDiffer(f"{name} gets other token ids from tiktoken than from tokenizers")


def _tiktoken(tokenizer: Tokenizer) -> tuple[tiktoken.Encoding | None, np.ndarray]:
    """The same vocabulary for tiktoken, and its ranks as ids; None for one that cannot be told as bytes and merges."""
    whole = json.loads(tokenizer.to_str())
    model = whole["model"]
    vocabulary: dict[str, int] = model["vocab"]
    letters = _letters()
    pieces = [*letters, *("".join(pair) for pair in model["merges"])]
    if not all(token["special"] for token in whole["added_tokens"]):
        return None, np.empty(0, np.uint32)  # those are found in text before anything else
    if model.get("dropout") or model.get("ignore_merges") or not all(piece in vocabulary for piece in pieces):
        return None, np.empty(0, np.uint32)
    pieces = list(dict.fromkeys(pieces))
    ranks = {bytes(letters[letter] for letter in piece): rank for rank, piece in enumerate(pieces)}
    ids = np.array([vocabulary[piece] for piece in pieces], np.uint32)
    return tiktoken.Encoding("koda", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={}), ids


def _letters() -> dict[str, int]:
    """The printable letter by which a byte-level vocabulary writes each byte (GPT-2's `bytes_to_unicode`)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + n): byte for n, byte in enumerate(hidden)}
