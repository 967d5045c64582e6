"""Talking to a run's model in any of its four runtimes."""

from pathlib import Path

from model.data.chat import Message
from model.data.chat import prompt as render
from model.errors import KodaError
from model.export.runtimes import HuggingFace, Jax, LlamaCpp, Mlx, Runtime
from model.files import read_json
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


def converse(name: str, runtime: str, prompt: str | None, limit: int) -> None:
    """Answer `prompt`, or one question after another until the input ends.

    When the conversation no longer fits the context, its oldest turns are left out, and that is said.
    """
    model = open_runtime(name, runtime)
    context = read_json(folder_of(name) / "extend/weights/COMMIT.json")["config"]["max_position_embeddings"]
    limit = min(limit, context // 2)
    messages: list[Message] = []

    def ask(question: str) -> str:
        messages.append({"role": "user", "content": question})
        while len(model.tokenize(render(messages))) + limit > context and len(messages) > 2:
            del messages[:2]
            print("(the context is full: the oldest turn is forgotten)")
        if len(model.tokenize(render(messages))) + limit > context:
            raise KodaError(f"the question and {limit} tokens of answer do not fit the context of {context} tokens.")
        said = model.answer(messages, limit).text
        messages.append({"role": "assistant", "content": said})
        return said

    if prompt is not None:
        print(ask(prompt))
        return
    print("Ask something; Ctrl-D ends.")
    while True:
        print(ask(input("> ")))
