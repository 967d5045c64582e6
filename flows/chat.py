"""Talking to a run's model in any of its four runtimes."""

import sys
from collections.abc import Iterator

from model.data.chat import Message
from model.data.chat import prompt as render
from model.errors import KodaError
from model.export.runtimes import HuggingFace, Jax, LlamaCpp, Mlx, Runtime, installed
from model.files import read_json
from model.sampling import Sampling
from tasks.run import existing, folder_of

WEIGHTS = "extend/weights/COMMIT.json"
PLACES = {  # where each runtime's files lie in a run's folder, and which of them are taken first
    "jax": ("extend/weights", ["COMMIT.json"]),
    "hf": ("convert/hf", ["config.json"]),
    "gguf": ("convert/gguf", ["*-Q8_0.gguf", "*.gguf"]),
    "mlx": ("convert/mlx", ["8bit/config.json", "*/config.json"]),
}


def open_runtime(name: str, runtime: str) -> Runtime:
    """The run's final model in a runtime. Raises KodaError where the run has not come that far."""
    folder = existing(name)
    place, files = PLACES[runtime]
    found = [path for pattern in files for path in sorted((folder / place).glob(pattern))]
    if not found:
        raise KodaError(f"run {name!r} has no {folder / place} yet: the command that began it goes on with it.")
    if runtime == "jax":
        return Jax(found[0].parent, folder / "tokenize/tokenizer.json")
    installed([runtime])
    if runtime == "gguf":
        return LlamaCpp(found[0], read_json(folder / WEIGHTS)["config"]["max_position_embeddings"])
    return HuggingFace(found[0].parent) if runtime == "hf" else Mlx(found[0].parent)


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
    context = read_json(folder_of(name) / WEIGHTS)["config"]["max_position_embeddings"]
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
