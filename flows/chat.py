"""Talking to a run's model in any of its four runtimes."""

from pathlib import Path

from model.data.chat import Message
from model.errors import KodaError
from model.export.runtimes import HuggingFace, Jax, LlamaCpp, Mlx, Runtime
from model.files import read_json
from tasks.run import folder_of


def open_runtime(name: str, runtime: str) -> Runtime:
    """The run's final model in a runtime. Raises KodaError where the run has not come that far."""
    folder = folder_of(name)
    needed = {"jax": "extend/weights", "hf": "convert/hf", "gguf": "convert/gguf", "mlx": "convert/mlx/8bit"}[runtime]
    if not (folder / needed).exists():
        raise KodaError(f"run {name!r} has no {folder / needed} yet: `koda run --name {name}` makes it.")
    if runtime == "jax":
        return Jax(folder / needed, folder / "tokenize/tokenizer.json")
    if runtime == "gguf":
        context = read_json(folder / "convert/hf/config.json")["max_position_embeddings"]
        return LlamaCpp(next(Path(folder / needed).glob("*-Q8_0.gguf")), context)
    return HuggingFace(folder / needed) if runtime == "hf" else Mlx(folder / needed)


def converse(name: str, runtime: str, prompt: str | None, limit: int) -> None:
    """Answer `prompt`, or one question after another until the input ends."""
    model = open_runtime(name, runtime)
    if prompt is not None:
        print(model.answer([{"role": "user", "content": prompt}], limit).text)
        return
    print("Ask something; Ctrl-D ends.")
    messages: list[Message] = []
    while True:
        messages.append({"role": "user", "content": input("> ")})
        said = model.answer(messages, limit).text
        messages.append({"role": "assistant", "content": said})
        print(said)
