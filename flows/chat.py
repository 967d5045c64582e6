"""Talking to a run's model in any of its four runtimes."""

import sys
from collections.abc import Iterator
from pathlib import Path

from model.data.chat import Message
from model.data.chat import prompt as render
from model.errors import KodaError
from model.export.runtimes import HuggingFace, Jax, LlamaCpp, Mlx, Runtime
from model.files import read_json
from model.sampling import Sampling
from tasks.run import folder_of


def open_runtime(name: str, runtime: str) -> Runtime:
    """The run's final model in a runtime. Raises KodaError where the run has not come that far."""
    folder = folder_of(name)
    needed = {"jax": "extend/weights", "hf": "convert/hf", "gguf": "convert/gguf", "mlx": "convert/mlx/8bit"}[runtime]
    if not folder.is_dir():
        raise KodaError(f"there is no run {name!r}: {folder} does not exist. `koda run --name {name}` makes it.")
    if not (folder / needed).exists():
        raise KodaError(f"run {name!r} has no {folder / needed} yet: the command that began it goes on with it.")
    if runtime == "jax":
        return Jax(folder / needed, folder / "tokenize/tokenizer.json")
    if runtime == "gguf":
        context = read_json(folder / "convert/hf/config.json")["max_position_embeddings"]
        return LlamaCpp(next(Path(folder / needed).glob("*-Q8_0.gguf")), context)
    return HuggingFace(folder / needed) if runtime == "hf" else Mlx(folder / needed)


class Conversation:
    """What was said so far, within the context of one model."""

    def __init__(self, model: Runtime, context: int, sampling: Sampling):
        self.model, self.context, self.sampling = model, context, sampling
        self.messages: list[Message] = []
        self.forgotten = 0  # turns left out so far

    def ask(self, question: str) -> Iterator[str]:
        """The answer, piece by piece. When the context is full, the oldest turns are left out first.

        Raises KodaError for a question that leaves no room for an answer.
        """
        asked: Message = {"role": "user", "content": question}
        if self._too_long([asked]):
            raise KodaError(
                f"the question and {self.sampling.limit} tokens of answer do not fit the context of {self.context} "
                "tokens. Ask less, or set a smaller --limit."
            )
        self.messages.append(asked)
        while self._too_long(self.messages):
            del self.messages[:2]
            self.forgotten += 1
        said = ""
        for piece in self.model.stream(self.messages, self.sampling):
            said += piece
            yield piece
        self.messages.append({"role": "assistant", "content": said})

    def _too_long(self, messages: list[Message]) -> bool:
        return len(self.model.tokenize(render(messages))) + self.sampling.limit > self.context


def converse(name: str, runtime: str, prompt: str | None, sampling: Sampling) -> None:
    """Answer `prompt`, or one question after another until the input ends."""
    model = open_runtime(name, runtime)
    context = read_json(folder_of(name) / "extend/weights/COMMIT.json")["config"]["max_position_embeddings"]
    if sampling.limit > context // 2:
        print(f"(answers of at most {context // 2} tokens: half the context is for what is asked)", file=sys.stderr)
        sampling = sampling._replace(limit=context // 2)
    talk = Conversation(model, context, sampling)
    if prompt is not None:
        _print(talk.ask(prompt))
        return
    print("Ask something; Ctrl-D ends.")
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
