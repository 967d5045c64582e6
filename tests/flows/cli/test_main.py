"""The command as its own process, as a person meets it: errors that a person can fix."""

import os
import subprocess
from pathlib import Path

import pytest

from flows.cli.main import main
from model.errors import KodaError
from model.files import lock_file
from tasks.runs.paths import make_folder, root
from tests.flows.cli.test_import_model import random_model
from tests.pipeline import KODA


def koda(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    environment = {**os.environ, **environment}
    command = [KODA, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, encoding=encoding, timeout=300
    )


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("run.toml", 'preset = "tiny', "cannot be read: Unterminated string (at end of document). Correct it by hand"),
        ("run.toml", 'preset = "t\xff"', "cannot be read: 'utf-8' codec"),
        ("run.toml", "tokenize = 3", "tokenize = 3; it takes a section"),
        ("run.toml", "preset = 3", "preset = 3; it takes a name"),
        ("run.toml", '[pretrain]\nsteps = "many"', "pretrain.steps = 'many'; it takes a number"),
        ("tokenize/stage.json", "[]", "is not the record of a stage"),
        ("tokenize/stage.json", '{"key": ', "is not JSON: Expecting value: line 1 column 9"),
        ("tokenize/stage.json", "", "is not JSON: Expecting value: line 1 column 1"),
    ],
)
@pytest.mark.parametrize("command", [["status", "r"], ["report", "r"], ["report", "r", "r"], ["run", "--name", "r"]])
def test_damaged_file_of_a_run_is_one_error_that_names_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    file: str,
    text: str,
    message: str,
) -> None:
    monkeypatch.setenv("KODA_RUNS", str(tmp_path))
    for name, written in (("run.toml", "[pretrain]\nsteps = 7\n"), (file, text)):
        (tmp_path / "r" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "r" / name).write_text(written, encoding="latin-1")
    monkeypatch.setattr("flows.cli.run.embedded_server", None)  # nothing is started
    assert main(command) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"koda: {tmp_path / 'r' / file}") and message in error and error.count("\n") == 1


def test_report_shows_what_a_run_toml_still_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After somebody has deleted settings from it: what is left out is as the preset has it."""
    monkeypatch.setenv("KODA_RUNS", str(tmp_path))
    (tmp_path / "r").mkdir()
    (tmp_path / "r/run.toml").write_text("[pretrain]\nsteps = 7000\n")
    assert main(["report", "r"]) == 0
    assert "7,000" in (tmp_path / "r/report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "tokenize.source=nowhere"], "tokenize.source = 'nowhere' does not exist"),
        (["--set", "tokenize.tokenizer=nowhere"], "tokenize.tokenizer = 'nowhere': no tokenizer there"),
        (["--set", "sft.source=nowhere.jsonl"], "sft.source = 'nowhere.jsonl' does not exist"),
        (["--set", "evaluate.standard=nowhere"], "evaluate.standard = 'nowhere': neither `hub` nor a folder"),
        (["--set", "evaluate.standard=."], "evaluate.standard = '.': no file ends in .jsonl there"),
        (["--from", "sft"], "--from sft needs the result of tokenize, and runs/r has none yet"),
        (["--name", "locked"], "runs/locked is locked by process"),
    ],
)
def test_run_that_cannot_begin_is_refused_before_a_server_starts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setenv("KODA_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flows.cli.run.embedded_server", None)
    (tmp_path / "runs/locked").mkdir(parents=True)
    with lock_file(tmp_path / "runs/locked/.lock", ""):
        assert main(["run", "--name", "r", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"koda: {message}") and error.count("\n") == 1
    assert not (tmp_path / "runs/r").exists()


@pytest.mark.parametrize(
    ("runs", "cause"),
    [("link", "it is a link to nothing"), ("file", "it is a file"), ("/proc/koda", "No such file or directory")],
)
@pytest.mark.parametrize("command", [["run"], ["up"], ["import", "model", "--name", "r"]])
def test_folder_of_runs_that_cannot_be_written_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    runs: str,
    cause: str,
    command: list[str],
    tokenizer_file: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    Path("link").symlink_to("nowhere")
    Path("file").touch()
    monkeypatch.setenv("KODA_RUNS", runs)
    if "model" in command:
        random_model(tmp_path / "model", tokenizer_file)
    assert main(command) == 1
    assert capsys.readouterr().err == (
        f"koda: runs cannot be written to {runs}: {cause}. Set KODA_RUNS to a folder that you can write to.\n"
    )


@pytest.mark.parametrize("cause", ["it is a link to nothing", "it is a file"])
def test_folder_of_a_run_that_cannot_be_written_is_named(tmp_path: Path, cause: str) -> None:
    folder = tmp_path / "r"
    folder.touch() if "file" in cause else folder.symlink_to("nowhere")
    with pytest.raises(KodaError, match=rf"^{folder} cannot be written to: {cause}\. Remove or rename it\.$"):
        make_folder(folder, 0o750)


@pytest.fixture
def named_run(tmp_path: Path) -> Path:
    """A folder with a run that can be looked at."""
    (tmp_path / "runs/r").mkdir(parents=True)
    (tmp_path / "runs/r/run.toml").write_text("[pretrain]\nsteps = 7\n")
    return tmp_path


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_output_that_cannot_hold_every_letter_gets_the_others(named_run: Path, encoding: str) -> None:
    done = koda("status", "r", folder=named_run, PYTHONIOENCODING=encoding)
    assert done.returncode == 0 and done.stderr == ""
    assert "r (preset tiny) ? step 0 of 7".replace("?", "·" if encoding == "latin-1" else "?") in done.stdout


@pytest.mark.parametrize("command", [["status", "r"], ["status", "r", "--json"], ["run", "--help"]])
def test_closed_pipe_ends_a_command_quietly(named_run: Path, command: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([KODA, *command], cwd=named_run, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full, a disk that is always full")
def test_full_disk_under_the_output_is_one_error(named_run: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([KODA, "status", "r"], cwd=named_run, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "koda: [Errno 28] No space left on device\n")


def test_empty_folder_of_runs_is_the_default_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KODA_RUNS", "")
    assert root() == Path("runs")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--preset", "tny"], "did you mean tiny?"),
        (["run", "--set", "pretrain.stepz=3"], "did you mean steps?"),
        (["run", "--set", "pretrain.steps"], "section.key=value"),
        (["run", "--set", "model.num_attention_heads=9"], "model.num_attention_heads = 9"),
        (["run", "--name", "../elsewhere"], "cannot be a run's name"),
        (["run", "--until", "training"], "no stage is called 'training'"),
        (["status", "nothing"], "there is no run 'nothing'"),
        (["report", "nothing"], "there is no run 'nothing'"),
        (["chat", "nothing", "--prompt", "x"], "`koda run --name nothing` makes it"),
    ],
)
def test_errors_are_one_line_without_traceback(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = koda(*arguments, folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("koda: ") and message in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert not any(tmp_path.rglob("run.toml"))  # refused before anything was written
