"""The interface of a runtime that opens a model, and Koda's own JAX model behind it, the reference of the exports.

The runtimes of the exports are in model/export/formats/: transformers on torch, llama.cpp as a server on loopback,
mlx-lm.

Letters in names: N beginnings of a text, P positions in it, T time, V vocabulary.
"""

from collections.abc import Collection, Generator
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
        """Up to `count` tokens after `ids`, the likeliest each time, to the one that ends a text, without it."""

    def tokenize(self, text: str) -> list[int]:
        """The ids the runtime's own tokenizer gives a text."""

    def prompt(self, messages: list[chat.Message]) -> str:
        """What the runtime's own chat template makes of a conversation that is to be answered."""

    def ends(self, of: Collection[int]) -> set[int]:
        """Those of these tokens that end an answer in this runtime."""

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

    def __init__(self, weights_folder: Path, tokenizer_file: Path, longest: int = 0):
        """`longest`: tokens that are computed together at most; 0: the whole context."""
        from model import weights
        from model.data import tokenizer as tokenizers
        from model.generate import Generator

        self.model = weights.load(weights_folder)
        self.vocabulary = tokenizers.load(str(tokenizer_file))
        context = self.model.config.max_position_embeddings
        self.context = min(context, longest or context)
        self.generator = Generator(self.model, self.context)

    def probe(self, ids: list[int], after: list[int], of: list[int]) -> Probe:
        import jax.numpy as jnp

        return Probe.of(np.asarray(self.model(jnp.asarray([ids]))[0]), ids, after, of)

    def greedy(self, ids: list[int], count: int) -> list[int]:
        stops = self.vocabulary.stops
        return [token for token in self.generator(ids, stops, Sampling(limit=count)) if token not in stops]

    def tokenize(self, text: str) -> list[int]:
        return self.vocabulary.plain(text)

    def prompt(self, messages: list[chat.Message]) -> str:
        return chat.prompt(self.vocabulary, messages)

    def ends(self, of: Collection[int]) -> set[int]:
        return set(of) & set(self.vocabulary.stops)

    def stream(self, messages: list[chat.Message], sampling: Sampling) -> TextStream:
        vocabulary = self.vocabulary
        ids: list[int] = []
        shown = 0  # letters
        for token in self.generator(chat.encode_prompt(vocabulary, messages), vocabulary.stops, sampling):
            ids.append(token)
            text = vocabulary.tokenizer.decode(ids)
            if not text.endswith("\ufffd"):  # the next token may complete the letter
                yield text[shown:]
                shown = len(text)
        if rest := vocabulary.tokenizer.decode(ids)[shown:]:
            yield rest
        return bool(ids) and ids[-1] in vocabulary.stops
