"""The interface of a runtime that opens a model, and Koda's own JAX model behind it, the reference of the exports.

The runtimes of the exports are in model/export/formats/: transformers on torch, llama.cpp as a server on loopback,
mlx-lm.

Letters in names: N beginnings of a text, P positions in it, T time, V vocabulary.
"""

from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from model.data import chat
from model.sampling import Sampling


class Answer(NamedTuple):
    """A model's answer, and whether it ended by itself."""

    text: str
    stopped: bool


class Probe(NamedTuple):
    """Log-probabilities, in nats."""

    next_NV: np.ndarray  # of every token after each of N beginnings, `[beginnings, vocabulary]`
    chosen_P: np.ndarray  # of tokens of the text itself, `[positions]`

    @staticmethod
    def of(logits_TV: np.ndarray, ids: list[int], after: list[int], of: list[int]) -> "Probe":
        """From the logits after each token of `ids`."""
        rows_NV = logits_TV[[n - 1 for n in (*after, *of)]].astype(np.float64)
        logprobs_NV = rows_NV - np.logaddexp.reduce(rows_NV, axis=-1, keepdims=True)
        count = len(after)
        return Probe(logprobs_NV[:count], logprobs_NV[np.arange(count, len(rows_NV)), [ids[at] for at in of]])


TextStream = Generator[str, None, bool]  # pieces of text; it returns whether the text ended by itself


class Runtime(Protocol):
    """A model opened in some runtime."""

    def probe(self, ids: list[int], after: list[int], of: list[int]) -> Probe:
        """Log-probabilities of the token after the first `n` of `ids`, for each `n` of `after`; and of those of `ids`
        at the positions `of`, each given all before it."""

    def greedy(self, ids: list[int], count: int) -> list[int]:
        """Up to `count` tokens after `ids`, the likeliest each time; after the one that ends a text there are none."""

    def tokenize(self, text: str) -> list[int]:
        """The ids the runtime's own tokenizer gives a text."""

    def prompt(self, messages: list[chat.Message]) -> str:
        """What the runtime's own chat template makes of a conversation that is to be answered."""

    def ends(self) -> set[int]:
        """The tokens that end an answer in this runtime."""

    def stream(self, messages: list[chat.Message], sampling: Sampling) -> TextStream:
        """The answer to a conversation, through the runtime's own chat template, piece by piece."""


def answer(runtime: Runtime, messages: list[chat.Message], sampling: Sampling) -> Answer:
    """The whole answer to a conversation."""
    stream = runtime.stream(messages, sampling)
    pieces: list[str] = []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            return Answer("".join(pieces), bool(end.value))


class Jax:
    """Koda's own weights; the reference."""

    def __init__(self, weights_folder: Path, tokenizer_file: Path):
        from model import weights
        from model.data import tokenizer as tokenizers
        from model.generate import Generator

        self.model = weights.load(weights_folder)
        self.tokenizer = tokenizers.load(str(tokenizer_file))
        self.stop = tokenizers.end_of_text(self.tokenizer)
        self.generator = Generator(self.model)

    def probe(self, ids: list[int], after: list[int], of: list[int]) -> Probe:
        import jax.numpy as jnp

        return Probe.of(np.asarray(self.model(jnp.asarray([ids]))[0]), ids, after, of)

    def greedy(self, ids: list[int], count: int) -> list[int]:
        return list(self.generator(ids, self.stop, Sampling(limit=count)))

    def tokenize(self, text: str) -> list[int]:
        from model.data.tokenizer import encode_plain

        return encode_plain(self.tokenizer, [text])[0]

    def prompt(self, messages: list[chat.Message]) -> str:
        return chat.prompt(messages)

    def ends(self) -> set[int]:
        return {self.stop}

    def stream(self, messages: list[chat.Message], sampling: Sampling) -> TextStream:
        from tokenizers.decoders import DecodeStream

        decoder, token = DecodeStream(skip_special_tokens=True), None
        for token in self.generator(chat.encode_prompt(self.tokenizer, messages), self.stop, sampling):
            if piece := decoder.step(self.tokenizer, token):
                yield piece
        return token == self.stop
