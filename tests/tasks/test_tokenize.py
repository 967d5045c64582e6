import gzip
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from model.files import listing
from model.ports import free_port
from tasks.runs.run import Run
from tasks.tokenize import Tokenize, tokenize
from tests.records import FIGURES


@pytest.fixture
def text(tmp_path: Path, prose: str) -> Path:
    (tmp_path / "text").mkdir()
    for number in range(24):
        start = number * 4000
        line = json.dumps({"text": prose[start : start + 4000]}) + "\n"
        (tmp_path / "text" / f"{number:02}.jsonl.gz").write_bytes(gzip.compress(line.encode()))
    return tmp_path / "text"


@pytest.fixture
def scheduler() -> Iterator[str]:
    """A real Dask scheduler with two workers, each a process of its own."""
    address = f"tcp://127.0.0.1:{free_port()}"
    host, port = address.removeprefix("tcp://").split(":")
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", host, "--port", port, "--no-dashboard"]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard"]
    processes = [subprocess.Popen(c, stderr=subprocess.DEVNULL) for c in (command, worker, worker)]
    try:
        from distributed import Client

        deadline = time.monotonic() + 60
        while True:
            try:
                with Client(address, timeout=5) as client:
                    client.wait_for_workers(2, timeout=60)
                    break
            except OSError:
                assert time.monotonic() < deadline
        yield address
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)


def test_dask_cluster_writes_the_same_bytes(
    tmp_path: Path, text: Path, scheduler: str, prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import Client
    from prefect import flow

    monkeypatch.setenv("KODA_RUNS", str(tmp_path / "runs"))
    settings = Tokenize(source=str(text), vocab_size=400, heldout_fraction=0.2, shard_tokens=2000)

    @flow(validate_parameters=False)
    def run(name: str, dask: str) -> None:
        with Run(name) as opened:
            tokenize(opened, settings.model_copy(update={"dask": dask}))

    run("here", "")
    run("there", scheduler)
    with Client(scheduler) as client:
        assert any(client.run(lambda: "model.data.blocks" in sys.modules).values())  # the work was done there
    files = [
        {path: facts for path, facts in listing(tmp_path / "runs" / name / "tokenize").items() if path != "stage.json"}
        for name in ("here", "there")
    ]
    assert files[0] == files[1] and "train/00003.npy" in files[0]


def test_settings_of_how_and_where_it_runs_are_not_decisive(text: Path) -> None:
    settings = Tokenize(source=str(text))
    assert settings.decisive() == Tokenize(source=str(text), workers=7, dask="tcp://x:1").decisive()
    assert settings.decisive() != Tokenize(source=str(text), limit=5).decisive()


@pytest.mark.parametrize("encoding", ["latin9000", "rot13", "hex", "a\0b"])
def test_unknown_encoding_is_refused_by_name(encoding: str) -> None:
    with pytest.raises(ValidationError, match=r"tokenize\.encoding = .* is not an encoding"):
        Tokenize(encoding=encoding)
    for known in ("", "utf-8", "utf-16", "utf-32", "gbk", "KOI8-R"):
        assert Tokenize(encoding=known).encoding == known


def test_impossible_source_is_refused() -> None:
    for wrong in ("", {}, {"docs": 0}, {"docs": -1.0}):
        with pytest.raises(ValidationError):
            Tokenize(source=wrong)


@pytest.mark.parametrize(("settings", "noted"), [({"vocab_size": 512}, True), ({"vocab_size": 349}, False)])
def test_vocabulary_that_is_smaller_than_its_setting_is_noted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    settings: dict[str, int],
    noted: bool,
) -> None:
    (tmp_path / "notes.json").write_text("[]")
    monkeypatch.setattr("tasks.tokenize._here", lambda *_: replace(FIGURES["tokenize"], vocab_size=349))
    tokenize.body(tmp_path, Tokenize(**settings))
    note = "the vocabulary has 349 entries, not tokenize.vocab_size = 512: the text has no more to merge"
    assert (note in capsys.readouterr().out) == noted
    tokenize.body(tmp_path, Tokenize(tokenizer="gpt2", **settings))
    assert note not in capsys.readouterr().out
