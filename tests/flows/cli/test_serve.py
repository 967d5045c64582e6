"""`koda serve` as a process: what it opens, what it refuses, how it ends."""

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from flax import nnx

from flows.cli.main import main
from flows.cli.serve import resolve, runtimes
from model import weights
from model.data import tokenizer as tokenizers
from model.errors import KodaError
from model.export import gguf_file
from model.export.about import About
from model.export.formats import FORMATS, hf, mlx
from model.files import read_json, write_json
from model.llama import Llama
from model.serving.server import listen
from tests.conftest import SHAPE
from tests.pipeline import KODA
from tests.records import FIGURES, write_record

READY = re.compile(r"(http://\S+): (\S+) in (\w+), context (\d+) tokens\. Ctrl-C ends it\.")
CONTEXT = 4096  # long enough for an answer to be under way


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path) -> Path:
    """A folder with a run `mine` up to its exports, and with the same model in the form of every export."""
    folder = tmp_path_factory.mktemp("served")
    run = folder / "runs/mine"
    shape = replace(SHAPE, vocab_size=512, max_position_embeddings=CONTEXT)
    weights.save(run / "extend/weights", Llama(shape, rngs=nnx.Rngs(0)))
    vocabulary = tokenizers.load(str(tokenizer_file))
    vocabulary.save(run / "tokenize")
    (run / "run.toml").write_text("")
    for stage in ("sft", "extend"):
        write_record(run, stage, FIGURES[stage])
    stored = weights.read(run / "extend/weights")
    hf.write(run / "convert/hf", stored, vocabulary, "auto")
    mlx.write(run / "convert/mlx/4bit", run / "convert/hf", "4bit")
    mlx.write(run / "convert/mlx/fp16", run / "convert/hf", "fp16")
    (run / "convert/gguf").mkdir()
    gguf_file.write(run / "convert/gguf/m-F16.gguf", stored, vocabulary, "F16", About("x"))
    return folder


@pytest.fixture
def serve(project: Path) -> Iterator[Callable[..., tuple[subprocess.Popen, re.Match]]]:
    """Start `koda serve` and wait for its line: the process, and the line's parts."""
    processes = []

    def start(*arguments: str, **environment: str) -> tuple[subprocess.Popen, re.Match]:
        process = subprocess.Popen(
            [KODA, "serve", *arguments, "--port", "0"],
            cwd=project,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        ready = READY.fullmatch(line.strip())
        assert ready, line + (process.stderr.read() if not line else "")
        return process, ready

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_run_is_served_and_ctrl_c_ends_it_with_an_answer_under_way(serve: Callable) -> None:
    process, ready = serve("mine")
    address, *described = ready.groups()
    assert described == ["mine", "jax", str(CONTEXT)]
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0)
    assert [model.id for model in client.models.list()] == ["mine"]
    body = {"model": "mine", "prompt": "def", "stream": True, "max_tokens": CONTEXT, "temperature": 0}
    with httpx.stream("POST", f"{address}/v1/completions", json=body, timeout=120) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        process.send_signal(signal.SIGINT)
        with pytest.raises(httpx.RemoteProtocolError):  # it breaks off, and does not seem to be complete
            assert "data: [DONE]" not in list(lines)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "")


def test_key_is_required_where_the_environment_has_one(serve: Callable, project: Path) -> None:
    gguf = "runs/mine/convert/gguf/m-F16.gguf"
    _, ready = serve(gguf, "--host", "0.0.0.0", KODA_API_KEY="secret")
    assert ready.groups()[1:3] == ("m-F16", "gguf")
    address = ready[1].replace("0.0.0.0", "127.0.0.1")
    wrong, right = (openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0) for key in ("no", "secret"))
    with pytest.raises(openai.AuthenticationError):
        wrong.completions.create(model="m-F16", prompt="a")
    assert right.completions.create(model="m-F16", prompt="def", max_tokens=3).usage.completion_tokens == 3


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["serve", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_what_cannot_be_served_is_one_line_before_a_model_is_opened(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    monkeypatch.delenv("KODA_API_KEY", raising=False)
    monkeypatch.setattr("flows.cli.serve.open_runtime", lambda *_: pytest.fail("opened"))
    for host in ("0.0.0.0", "::", "koda.example"):
        assert "Set KODA_API_KEY" in refused(["mine", "--host", host], capsys)
    with listen("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        assert f"port {port} of 127.0.0.1 is taken" in refused(["mine", "--port", port], capsys)
    assert "0 to 65535" in refused(["mine", "--port", "70000"], capsys)
    assert "is not a model" in refused(["nothing"], capsys)
    assert "does not open runs/mine/convert/hf" in refused(["runs/mine/convert/hf", "--runtime", "gguf"], capsys)
    monkeypatch.setenv("KODA_API_KEY", "two words")
    assert "KODA_API_KEY has a character" in refused(["mine"], capsys)


@pytest.mark.parametrize(
    ("path", "able"),
    [
        ("extend/weights", ["jax"]),
        ("convert/hf", ["hf", "mlx", "jax"]),
        ("convert/mlx/4bit", ["mlx", "jax"]),
        ("convert/mlx/fp16", ["mlx", "hf", "jax"]),
        ("convert/gguf/m-F16.gguf", ["gguf", "jax"]),
    ],
)
def test_model_is_opened_by_what_it_was_written_for_or_by_another_that_can(
    project: Path, path: str, able: list[str]
) -> None:
    """The same model gives the same likeliest token, opened in any of them."""
    place = project / "runs/mine" / path
    assert runtimes(place) == able
    ids, likeliest = [70, 71, 72], set()
    for runtime in (None, *able):
        served = resolve(str(place), runtime)
        assert served.runtime == (runtime or able[0]) and served.name == (
            "m-F16" if path.endswith("gguf") else place.name
        )
        opened = served.open()
        assert opened.context == CONTEXT
        likeliest.add(int(opened.probe(ids, [3], []).next_NV[0].argmax()))
    assert len(likeliest) == 1


@pytest.mark.parametrize("runtime", ["jax", *FORMATS])
def test_run_is_opened_in_every_runtime(project: Path, monkeypatch: pytest.MonkeyPatch, runtime: str) -> None:
    monkeypatch.chdir(project)
    served = resolve("mine", runtime)
    assert served[:2] == ("mine", runtime) and served.open().context == CONTEXT


def test_run_whose_model_is_stale_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = tmp_path / "runs/mine"
    run.parent.mkdir()
    run.symlink_to(project / "runs/mine")
    monkeypatch.chdir(tmp_path)
    record: dict[str, Any] = read_json(run / "extend/stage.json")
    write_json(run / "extend/stage.json", {**record, "reads": {"sft": "of an earlier training"}})
    try:
        with pytest.raises(KodaError, match="was built from an earlier sft"):
            resolve("mine", None)
    finally:
        write_json(run / "extend/stage.json", record)
