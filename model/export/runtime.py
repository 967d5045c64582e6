"""The interface of a runtime that opens a model, and Koda's own JAX model behind it, the reference of the exports.

The runtimes of the exports are in model/export/formats/: transformers on torch, llama.cpp as a server on loopback,
mlx-lm.

Letters in names: N beginnings of a text, P positions in it, T time, V vocabulary.
"""

import contextlib
from collections.abc import Callable, Collection, Container, Generator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from model.data import chat
from model.errors import KodaError, one_line
from model.sampling import Sampling

if TYPE_CHECKING:
    from model.data.vocabulary import Vocabulary
    from model.llama import Llama


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


class Scored(NamedTuple):
    """A token as it is spelled by itself, `\ufffd` for a part of a letter; and its log-probability, in nats."""

    text: str
    logprob: float


class Token(NamedTuple):
    """A token of an answer, when it comes."""

    text: str  # what it adds to the answer: nothing while a letter is incomplete, nothing if the token is special
    ends: bool = False  # it ends the answer
    scored: Scored | None = None  # itself, before temperature, top-k and top-p; None: not wanted, or not known
    top: tuple[Scored, ...] = ()  # the likeliest tokens in its place, the first before the others


TextStream = Generator[str, None, bool]  # pieces of text; it returns whether the text ended by itself
TokenStream = Generator[Token, None, None]
Prompt = str | list[chat.Message]


class Runtime(Protocol):
    """A model opened in some runtime."""

    context: int  # tokens, prompt and answer together

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

    def encode(self, prompt: Prompt) -> list[int]:
        """The ids that the model continues: of a text, in which special tokens may be spelled, with what the tokenizer
        puts around it; or of a conversation that is to be answered.

        Raises KodaError for a conversation that the chat template refuses.
        """

    def generate(self, ids: list[int], sampling: Sampling, top: int | None = None) -> TokenStream:
        """The tokens after `ids`, up to the one that ends the answer. Closing the iterator ends the computation.

        `top`: how many of the likeliest are reported for each token; None: no log-probabilities at all.
        """

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


def text_stream(tokens: Iterable[Token]) -> TextStream:
    """The text of an answer, piece by piece."""
    ended = False
    for token in tokens:
        ended = token.ends
        if token.text:
            yield token.text
    return ended


@contextlib.contextmanager
def template_errors() -> Iterator[None]:
    """Raises KodaError for whatever a chat template raises: it is a program that came with the model."""
    try:
        yield
    except Exception as error:
        raise KodaError(f"the chat template refuses this conversation: {one_line(error)}") from None


def scored(
    logits_V: np.ndarray, token: int, top: int, spell: Callable[[int], str]
) -> tuple[Scored, tuple[Scored, ...]]:
    """A token and the `top` likeliest of its place, from the logits that it was chosen by."""
    logits_V = logits_V.astype(np.float64)
    logprobs_V = logits_V - np.logaddexp.reduce(logits_V)
    itself, *likeliest = (
        Scored(spell(number), float(logprobs_V[number]))
        for number in (token, *np.argsort(-logprobs_V, kind="stable")[:top].tolist())
    )
    return itself, tuple(likeliest)


class Writer:
    """Token ids, one after another → an answer's tokens, with a tokenizer's `decode`."""

    def __init__(self, decode: Callable[..., str], letter: int):
        """`letter`: the id of some letter, for the space before a word is decoded only where something precedes it."""
        self._decode, self._letter = decode, letter
        self._ids: list[int] = []
        self._shown = 0  # letters

    def write(
        self, chosen: Iterable[tuple[int, Any]], limit: int, stops: Container[int], top: int | None
    ) -> TokenStream:
        """From each id and the logits that it was chosen by; one of `stops` ends the answer, as do `limit` tokens."""
        for number, (token, logits_V) in enumerate(chosen, 1):
            ends = token in stops
            text = self._added([] if ends else [token], last=ends or number == limit)
            yield Token(text, ends, *(() if top is None else scored(np.asarray(logits_V), token, top, self.spell)))
            if ends or number == limit:
                return

    def spell(self, token: int) -> str:
        before, both = (self._decode(ids, skip_special_tokens=False) for ids in ([self._letter], [self._letter, token]))
        return both[len(before) :]

    def _added(self, ids: list[int], last: bool) -> str:
        self._ids += ids
        text = self._decode(self._ids, skip_special_tokens=True)
        if text.endswith("\ufffd") and not last:  # the next token may complete the letter
            return ""
        begin, self._shown = self._shown, len(text)
        return text[begin:]


class Jax:
    """Koda's own weights; the reference."""

    def __init__(self, model: "Llama", vocabulary: "Vocabulary", longest: int = 0):
        """`longest`: tokens that are computed together at most; 0: the whole context."""
        from model.generate import Generator

        self.model, self.vocabulary = model, vocabulary
        context = model.config.max_position_embeddings
        self.context = min(context, longest or context)
        self.generator = Generator(model, self.context)

    @classmethod
    def load(cls, weights_folder: Path, tokenizer_file: Path, longest: int = 0) -> "Jax":
        """From the files of a run."""
        from model import weights
        from model.data import tokenizer as tokenizers

        return cls(weights.load(weights_folder), tokenizers.load(str(tokenizer_file)), longest)

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

    def encode(self, prompt: Prompt) -> list[int]:
        vocabulary = self.vocabulary
        return (
            vocabulary.tokenizer.encode(prompt).ids
            if isinstance(prompt, str)
            else chat.encode_prompt(vocabulary, prompt)
        )

    def generate(self, ids: list[int], sampling: Sampling, top: int | None = None) -> TokenStream:
        limit = min(sampling.limit, self.context - min(len(ids), self.context - 1))
        stops = self.vocabulary.stops
        chosen = self.generator.tokens(ids, stops, sampling, logits=top is not None)
        return Writer(self.vocabulary.tokenizer.decode, self.tokenize("a")[-1]).write(chosen, limit, stops, top)

    def stream(self, messages: list[chat.Message], sampling: Sampling) -> TextStream:
        return (yield from text_stream(self.generate(self.encode(messages), sampling)))
