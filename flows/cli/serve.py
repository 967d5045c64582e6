"""`koda serve`: OpenAI's API, and a page to chat, for a run's model or another one on this machine."""

import argparse
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from flows.cli.chat import open_runtime
from flows.cli.located import Located, locate
from model.errors import KodaError
from model.files import COMMIT, read_object
from model.ports import LOOPBACK

if TYPE_CHECKING:
    from model.export.runtime import Runtime

KEY = "KODA_API_KEY"  # no argument, for every user of a machine sees those of its processes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from model.export.formats import FORMATS

    parser.add_argument("model", metavar="MODEL", help="a run, RUN/STAGE, a Hugging Face or MLX folder, a .gguf file")
    parser.add_argument(
        "--runtime", choices=("jax", *FORMATS), help="(default: jax for a run, else what the file is for)"
    )
    parser.add_argument("--host", default=LOOPBACK, help=f"another than {LOOPBACK} requires a key in {KEY}")
    parser.add_argument("--port", type=int, default=8000, help="(default: 8000)")


def main(arguments: argparse.Namespace) -> None:
    from flows.environment import causes_only
    from model.serving.answer import Engine
    from model.serving.app import application
    from model.serving.guard import is_loopback
    from model.serving.server import address, listen, serve

    key, local = os.environ.get(KEY, ""), is_loopback(arguments.host)
    if re.search(r"[^!-~]", key):
        raise KodaError(f"{KEY} has a character that a header cannot carry: use printable ASCII without spaces.")
    if not (local or key):
        raise KodaError(f"--host {arguments.host}: others can reach it. Set {KEY} to a key that they must have.")
    served = resolve(arguments.model, arguments.runtime)
    with listen(arguments.host, arguments.port) as listening, causes_only():
        engine = Engine(served.open)
        context = f"context {engine.runtime.context} tokens"
        line = f"{address(listening)}: {served.name} in {served.runtime}, {context}. Ctrl-C ends it."
        serve(application(engine, served.name, key, local), listening, line)


class Served(NamedTuple):
    """A model that can be served."""

    name: str  # by which clients know it
    runtime: str
    open: Callable[[], "Runtime"]


def resolve(model: str, runtime: str | None) -> Served:
    """What the argument names. Raises KodaError for what is not a model, and for a runtime that does not open it."""
    located = locate(model)
    if located.path == Path(model):
        name = located.path.stem if located.path.is_file() else located.path.absolute().name
    elif "/" not in model:
        runtime = runtime or "jax"
        return Served(model, runtime, partial(open_runtime, model, runtime))
    else:  # RUN/STAGE
        name = model
    able = runtimes(located.path)
    if runtime not in (None, *able):
        raise KodaError(f"--runtime {runtime} does not open {model}: {' and '.join(able)} can.")
    return Served(name, runtime or able[0], partial(open_located, located, runtime or able[0]))


def runtimes(path: Path) -> list[str]:
    """Those that open what is at `path`, the one that it was written for first."""
    from model.evaluation.subject import written_by_mlx

    if path.is_file():
        return ["gguf", "jax"]
    if (path / COMMIT).is_file():
        return ["jax"]
    if "quantization" in read_object(path / "config.json"):
        return ["mlx", "jax"]
    return ["mlx", "hf", "jax"] if written_by_mlx(path) else ["hf", "mlx", "jax"]


def open_located(located: Located, runtime: str) -> "Runtime":
    """A model in one of its `runtimes`. Raises KodaError where that is not installed, or cannot open it after all."""
    from model.evaluation.subject import open_model
    from model.export.formats import FORMATS
    from model.export.runtime import Jax

    if runtime != "jax":
        FORMATS[runtime].check_runtime()
        return FORMATS[runtime].open(located.path, 0)  # 0: the context that the file states
    tokens = located.tokens
    subject = open_model(located.path, tokens / "tokenizer.json" if tokens else None)
    return Jax(subject.model, subject.vocabulary)
