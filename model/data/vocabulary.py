"""A tokenizer with its special tokens and its form: what every stage needs to know about a vocabulary."""

from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer, processors

from model.data.families import Family
from model.data.special import Special
from model.files import atomic_write, write_json

FILE = "tokenizer.json"
SPECIAL = "special_tokens.json"  # beside it in a run, with the fields of Special


class Vocabulary(NamedTuple):
    """Text ↔ token ids."""

    tokenizer: Tokenizer
    special: Special
    family: Family
    text: str = ""  # of the tokenizer.json that it was read from; empty: that of the tokenizer itself

    @property
    def size(self) -> int:
        """The number of its tokens."""
        return self.tokenizer.get_vocab_size()

    @property
    def end(self) -> int:
        """The token that ends every document."""
        return self.special.end

    @property
    def stops(self) -> tuple[int, ...]:
        """The tokens that end an answer."""
        return self.special.stops

    def text_of(self, token: int | None) -> str:
        """How a special token is spelled; empty for none."""
        return "" if token is None else str(self.tokenizer.id_to_token(token))

    def plain(self, text: str) -> list[int]:
        """Token ids of a text as plain text, with nothing around it."""
        return encode_plain(self.tokenizer, [text])[0]

    def with_template(self, template: str) -> "Vocabulary":
        """With this chat template; empty: Koda's."""
        return self._replace(special=replace(self.special, template=template))

    def save(self, folder: Path) -> None:
        """Write it to `folder`, as `tokenizers.load` of that folder's tokenizer.json reads it."""
        write_json(folder / SPECIAL, asdict(self.special))
        self.write_tokenizer(folder)

    def write_tokenizer(self, folder: Path) -> None:
        """Write its tokenizer.json alone."""
        with atomic_write(folder / FILE) as file:
            file.write(self.text or self.tokenizer.to_str(pretty=True))


def begin_with(tokenizer: Tokenizer, token: int) -> None:
    """Have the post-processor put a token before every text."""
    name = tokenizer.id_to_token(token)
    begin = processors.TemplateProcessing(
        single=f"{name} $A", pair=f"{name} $A {name}:1 $B:1", special_tokens=[(name, token)]
    )
    before = [tokenizer.post_processor] if tokenizer.post_processor else []
    tokenizer.post_processor = processors.Sequence([*before, begin])


def encode_plain(tokenizer: Tokenizer, texts: Iterable[str]) -> list[list[int]]:
    """Token ids of each text as plain text: the letters `<|endoftext|>` in it do not become that token."""
    before = tokenizer.encode_special_tokens
    tokenizer.encode_special_tokens = True
    try:
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
    finally:
        tokenizer.encode_special_tokens = before
