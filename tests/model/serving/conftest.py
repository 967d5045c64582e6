"""A server for each runtime, in a thread of the tests, on a real socket."""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest

from model import weights
from model.data import tokenizer as tokenizers
from model.export import gguf_file
from model.export.about import About
from model.export.formats import FORMATS, hf, mlx
from model.export.runtime import Jax, Runtime, TokenStream
from model.sampling import Sampling
from model.serving.answer import Engine
from model.serving.app import application
from model.serving.server import Server, address, listen
from tests.browser import browser

__all__ = ["browser"]

RUNTIMES = ("jax", *FORMATS)
CONTEXT = 128

Opener = Callable[[str], Runtime]


class Watched:
    """A runtime that counts what is computed, and that can be stopped before a token."""

    def __init__(self, runtime: Runtime):
        self.runtime = runtime
        self.tokens = 0  # of the last answer
        self.closed = False
        self.pause_after = 0  # tokens; 0: never
        self.go_on = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runtime, name)

    def generate(self, ids: list[int], sampling: Sampling, top: int | None = None) -> TokenStream:
        self.tokens, self.closed = 0, False
        try:
            for token in self.runtime.generate(ids, sampling, top):
                self.tokens += 1
                yield token
                if self.tokens == self.pause_after:
                    self.go_on.wait(60)
        finally:
            self.closed = True


class Running:
    """A server that runs, and the engine behind it."""

    def __init__(self, opened: Callable[[], Runtime], key: str = ""):
        self.engine = Engine(lambda: Watched(opened()))
        self.socket = listen("127.0.0.1", 0)
        self.address = address(self.socket)
        self.server = Server(application(self.engine, "small", key, local=True), "")
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],))
        self.thread.start()
        self.client = openai.OpenAI(base_url=f"{self.address}/v1", api_key="any", max_retries=0, timeout=60)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join()

    @property
    def watched(self) -> Watched:
        return self.engine.runtime  # type: ignore[return-value]

    def call(self, method: str, *arguments: Any) -> Any:
        """What a method of the runtime returns, called where it may be."""
        return self.engine.submit(getattr(self.watched, method), *arguments).result()

    def complete(self, prompt: str = "def main(", **fields: Any) -> Any:
        return self.client.completions.create(model="small", prompt=prompt, **{"temperature": 0, **fields})

    def chat(self, *contents: str, **fields: Any) -> Any:
        messages = [{"role": "user", "content": text} for text in contents or ("Say 3",)]
        return self.client.chat.completions.create(model="small", messages=messages, **{"temperature": 0, **fields})


@pytest.fixture(scope="session")
def opener(saved_model: Path, tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Opener:
    """What opens the saved model in a runtime."""
    folder = tmp_path_factory.mktemp("exports")

    def write(name: str) -> None:
        stored, vocabulary = weights.read(saved_model / "weights"), tokenizers.load(str(tokenizer_file))
        if name == "gguf":
            gguf_file.write(folder / name, stored, vocabulary, "F32", About("x"))
        elif name == "hf":
            hf.write(folder / name, stored, vocabulary, "auto")
        else:
            hf.write(folder / "for-mlx", stored, vocabulary, "auto")
            mlx.write(folder / name, folder / "for-mlx", "fp16")

    def open_in(name: str) -> Runtime:
        if name == "jax":
            return Jax.load(saved_model / "weights", tokenizer_file)
        if not (folder / name).exists():
            write(name)
        return FORMATS[name].open(folder / name, 0)

    return open_in


@pytest.fixture(scope="module")
def started(opener: Opener) -> Iterator[Callable[[str], Running]]:
    """What starts the server in a runtime, unless it runs already."""
    running: dict[str, Running] = {}

    def start(runtime: str) -> Running:
        if runtime not in running:
            running[runtime] = Running(partial(opener, runtime))
        return running[runtime]

    yield start
    for one in running.values():
        one.stop()


@pytest.fixture(params=RUNTIMES)
def running(request: pytest.FixtureRequest, started: Callable[[str], Running]) -> Running:
    """A server, in each runtime."""
    return started(request.param)


@pytest.fixture
def in_jax(started: Callable[[str], Running]) -> Running:
    """A server for what is the same in every runtime."""
    return started("jax")
