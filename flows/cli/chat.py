"""`koda chat`: a conversation with a run's model, in JAX or in the runtime of one of its exports."""

import argparse
import contextlib
import io
import math
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from model.data.strings import lone_surrogate
from model.errors import KodaError
from model.files import read_json
from model.sampling import GREEDY, Sampling
from tasks.runs.paths import existing, folder_of
from tasks.runs.up_to_date import replaced_input

if TYPE_CHECKING:
    from model.data.chat import Message
    from model.export.runtime import Runtime

HOTTEST = 1e6  # every token is as likely then, to six digits
WEIGHTS = "extend/weights/COMMIT.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from model.export.formats import FORMATS

    parser.add_argument("name", nargs="?", default="tiny")
    parser.add_argument("--runtime", choices=("jax", *FORMATS), default="jax")
    parser.add_argument("--prompt", help="answer this, and end")
    parser.add_argument("--limit", type=int, default=100, help="tokens in an answer at most (default: 100)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest token each time (default)")
    parser.add_argument("--top-k", type=int, default=0, help="choose among so many of the likeliest tokens (0: all)")
    parser.add_argument("--top-p", type=float, default=1.0, help="choose among the likeliest of this probability")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="against repetition (1: none)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed, the same answer")


def main(arguments: argparse.Namespace) -> None:
    from flows.environment import causes_only

    sampling = Sampling(**{field: getattr(arguments, field) for field in Sampling._fields})
    for right, field, accepted in (
        (sampling.limit >= 1, "limit", "1 token or more"),
        (0 <= sampling.temperature <= HOTTEST, "temperature", f"0, or a number up to {HOTTEST:g}"),
        (sampling.top_k >= 0, "top_k", "a number of tokens, or 0 for all"),
        (0 < sampling.top_p <= 1, "top_p", "a probability above 0 and up to 1"),
        (1 <= sampling.repetition_penalty < math.inf, "repetition_penalty", "1, or a number above it"),
        (0 <= sampling.seed < 1 << 63, "seed", "a whole number from 0 to 2^63 - 1"),
    ):
        if not right:
            raise KodaError(f"--{field.replace('_', '-')} {getattr(sampling, field)}: it takes {accepted}.")
    if sampling.temperature < GREEDY:
        sampling = sampling._replace(temperature=0.0)
    with causes_only(), contextlib.suppress(EOFError):
        converse(arguments.name, arguments.runtime, arguments.prompt, sampling)


def open_runtime(name: str, runtime: str) -> "Runtime":
    """The run's final model in a runtime. Raises KodaError where the run has not come that far."""
    from model.export.formats import FORMATS
    from model.export.runtime import Jax

    folder = existing(name)
    place = folder / "extend/weights" if runtime == "jax" else folder / "convert" / runtime
    missing = KodaError(f"run {name!r} has no {place} yet: the command that began it goes on with it.")
    if not (folder / WEIGHTS).is_file():
        raise missing
    if runtime == "jax":
        return Jax.load(place, folder / "tokenize/tokenizer.json")
    exports = FORMATS[runtime].exports(place)
    if not exports:
        raise missing
    FORMATS[runtime].check_runtime()
    return FORMATS[runtime].open(exports[0], read_json(folder / WEIGHTS)["config"]["max_position_embeddings"])


class Conversation:
    """The messages so far, within the context of one model."""

    def __init__(self, model: "Runtime", context: int, sampling: Sampling):
        self.model, self.context, self.sampling = model, context, sampling
        self.messages: list[Message] = []
        self.forgotten = 0  # turns left out so far

    def ask(self, question: str) -> Iterator[str]:
        """The answer, piece by piece. When the context is full, the oldest turns are left out first.

        Raises KodaError for a question that is not UTF-8, and for one that leaves no room for an answer.
        """
        if lone_surrogate(question):  # Python's form of a byte that is not UTF-8
            raise KodaError(f"the question {question!r} is not UTF-8.")
        message: Message = {"role": "user", "content": question}
        if self._too_long([message]):
            raise KodaError(
                f"the question and {self.sampling.limit} tokens of answer do not fit the context of {self.context} "
                "tokens. Use a shorter question, or a smaller --limit."
            )
        self.messages.append(message)
        while self._too_long(self.messages):
            del self.messages[:2]
            self.forgotten += 1
        text = ""
        for piece in self.model.stream(self.messages, self.sampling):
            text += piece
            yield piece
        self.messages.append({"role": "assistant", "content": text})

    def _too_long(self, messages: "list[Message]") -> bool:
        return len(self.model.tokenize(self.model.prompt(messages))) + self.sampling.limit > self.context


def converse(name: str, runtime: str, prompt: str | None, sampling: Sampling) -> None:
    """Answer `prompt`, or one question after another until the input ends."""
    model = open_runtime(name, runtime)
    if source := replaced_input(folder_of(name), "extend"):
        print(f"(this model was built from an earlier {source}; koda run --name {name})", file=sys.stderr)
    shape = read_json(folder_of(name) / WEIGHTS)["config"]
    context = shape["max_position_embeddings"]
    if sampling.top_k >= shape["vocab_size"]:  # which mlx refuses
        sampling = sampling._replace(top_k=0)
    if sampling.limit > context // 2:
        print(f"(answers of at most {context // 2} tokens: half the context is for the question)", file=sys.stderr)
        sampling = sampling._replace(limit=context // 2)
    talk = Conversation(model, context, sampling)
    if prompt is not None:
        _print(talk.ask(prompt))
        return
    print("Type a question; Ctrl-D ends.")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    while True:
        question, forgotten = input("> "), talk.forgotten
        try:
            _print(talk.ask(question))
        except KodaError as error:
            print(f"({error})")
        if talk.forgotten > forgotten:
            print(f"(the context is full: the oldest {talk.forgotten - forgotten} of the turns before are forgotten)")


def _print(pieces: Iterator[str]) -> None:
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
