"""Fixtures of all tests. The environment is set before anything imports Prefect or JAX."""

import os
import shutil
import signal

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.update(
    DO_NOT_TRACK="1",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="180",
)

from collections.abc import Iterator
from pathlib import Path

import jax
import prefect.main  # noqa: F401  # before absl: setting up its log, it closes absl's stream, which is pytest's
import pytest
from flax import nnx

from model.config import LlamaConfig
from model.data import docs
from model.data import tokenizer as tokenizers
from model.llama import Llama
from tests import leftovers, pipeline

leftovers.mark()
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `pytest &` has it ignored, here and in children


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A session that leaves a process running has failed, whichever of its tests started it."""
    if hasattr(session.config, "workerinput"):  # a worker of pytest-xdist; its controller looks once all have ended
        return
    if running := leftovers.leftovers():
        print("\nstill running after the tests:", *running, sep="\n  ")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


SHAPE = LlamaConfig(
    vocab_size=320,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=128,
    max_position_embeddings=64,
)


@pytest.fixture(autouse=True)
def prefect_environment() -> Iterator[None]:
    """A command that a test calls in this process sets what Prefect reads; later tests do not see it."""
    before = {name: value for name, value in os.environ.items() if name.startswith("PREFECT")}
    yield
    for name in [name for name in os.environ if name.startswith("PREFECT")]:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture
def shape() -> LlamaConfig:
    return SHAPE


@pytest.fixture(scope="session")
def model() -> Llama:
    """A random model whose matrices are large enough that every part of it affects the logits."""
    network = Llama(SHAPE, rngs=nnx.Rngs(0))
    state = nnx.state(network, nnx.Param)
    nnx.update(network, jax.tree.map(lambda leaf: leaf * 5 if leaf.ndim > 1 else leaf, state))
    return network


@pytest.fixture(scope="session")
def tokens() -> jax.Array:
    """`[2, 64]` token ids."""
    return jax.random.randint(jax.random.key(1), (2, 64), 0, SHAPE.vocab_size)


@pytest.fixture(scope="session")
def prose() -> str:
    """Real English, about 400 kB: the interpreter's help topics."""
    return "\n\n".join(topic.text for topic in docs.topics())


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory, prose: str) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizers.train(iter([prose]), 512).write_tokenizer(path.parent)
    return path


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory, prose: str) -> Path:
    """A folder with a small run through all stages, built once by the real command. Tests work on copies of it."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # the folders of several workers lie beside each other
        folder = folder.parent
    return pipeline.build_once(folder / "small-run", prose)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, prose: str) -> Path:
    """A folder with the input files of a run."""
    folder = tmp_path_factory.mktemp("project")
    pipeline.lay_out(folder, prose)
    pipeline.shadow_packages(folder)
    return folder


@pytest.fixture(scope="module")
def finished_run(project: Path, small_run: Path) -> Path:
    """A finished small run in `project`, copied from `small_run`."""
    return Path(shutil.copytree(small_run / "runs/small", project / "runs/small"))


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A real Prefect server on a database of its own, for as long as the tests run."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        yield
