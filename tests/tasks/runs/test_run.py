from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from model.errors import KodaError
from model.figures import CheckpointFigures, PretrainFigures
from model.files import read_json
from tasks.runs.attempts import LIMIT
from tasks.runs.record import Built, read_built
from tasks.runs.run import Run

FIGURES = CheckpointFigures(parameters=1)


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of all runs, empty."""
    monkeypatch.setenv("KODA_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def body(folder: Path) -> CheckpointFigures:
    """A stage that writes one file."""
    (folder / "file.txt").write_text("text")
    return FIGURES


def die(name: str) -> None:
    """An attempt whose process dies: it writes nothing at its end."""
    Run(name).__enter__()._lock.close()  # type: ignore[union-attr]


def test_stage_is_stale_when_an_input_was_rebuilt() -> None:
    with Run("r") as run:
        base = Built("pretrain", run.folder / "pretrain", "k", PretrainFigures(parameters=1), "2026-01-01T00:00:00Z")
        built = run.build("checkpoint", "k", False, body, (base,))
        assert run.existing_result("checkpoint", "k", (base,)) == built == read_built(run.folder, "checkpoint")
        assert run.existing_result("checkpoint", "k", (replace(base, finished="2026-01-02T00:00:00Z"),)) is None


def test_failed_build_keeps_the_result_before_it() -> None:
    def fail(folder: Path) -> CheckpointFigures:
        (folder / "file.txt").write_text("half")
        raise RuntimeError

    with Run("r") as run:
        built = run.build("checkpoint", "k", False, body)
        with pytest.raises(RuntimeError):
            run.build("checkpoint", "k2", False, fail)
        assert run.existing_result("checkpoint", "k") == built and (built / "file.txt").read_text() == "text"


def test_resuming_stage_goes_on_with_its_own_work_and_sets_other_work_aside() -> None:
    @dataclass(frozen=True)
    class Seen:
        files: list[str]

    def look(folder: Path) -> Seen:
        seen = Seen(sorted(path.name for path in folder.iterdir()))
        (folder / "work").write_text("")
        return seen

    def interrupted(folder: Path) -> Seen:
        look(folder)
        raise RuntimeError

    with Run("r") as run:
        with pytest.raises(RuntimeError):
            run.build("pretrain", "key-one", True, interrupted)
        assert run.build("pretrain", "key-one", True, look).figures.files == ["building.json", "work"]
        assert run.build("pretrain", "key-two", True, look).figures.files == ["building.json"]
        assert (run.folder / "pretrain.key-one" / "work").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full, a disk that is always full")
@pytest.mark.parametrize("write", [np.save, lambda file, array: file.write(array.tobytes())])
def test_full_disk_is_reported_and_nothing_is_lost(write: Callable) -> None:
    def fill(folder: Path) -> CheckpointFigures:
        with Path("/dev/full").open("wb") as file:
            write(file, np.zeros(1 << 20))
        return FIGURES

    with Run("r") as run:
        built = run.build("checkpoint", "k", False, body)
        with pytest.raises(KodaError, match="disk is full"):
            run.build("checkpoint", "k2", False, fill)
        assert run.existing_result("checkpoint", "k") == built


def test_run_is_locked_by_one_process() -> None:
    with Run("r"), pytest.raises(KodaError, match=r"runs/r is locked by process \d+ on \S+ since"), Run("r"):
        pass
    with Run("r"):
        pass


def test_from_keeps_earlier_results_and_rebuilds_the_rest() -> None:
    with Run("r") as run:
        earlier = run.build("checkpoint", "k", False, body)
        run.build("sft", "k", False, body)
    with Run("r", start="sft") as run:
        assert run.existing_result("checkpoint", "another key") == earlier
        assert run.existing_result("sft", "k") is None
    with Run("r", start="convert") as run, pytest.raises(KodaError, match="needs the result of extend"):
        run.existing_result("extend", "k")


def test_from_refuses_an_earlier_result_that_was_built_from_another_one() -> None:
    """As publishing is, where exports were built of weights that are no longer those of the run."""
    with Run("r") as run:
        run.build("checkpoint", "k", False, body, (run.build("pretrain", "k", False, body),))
        run.build("pretrain", "another", False, body)
    message = "checkpoint of runs/r was built from an earlier pretrain: `koda run --name r`"
    with Run("r", start="sft") as run, pytest.raises(KodaError, match=message):
        run.existing_result("checkpoint", "k")


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "x" * 65, "a\nb"])
def test_name_that_leads_out_of_the_folder_is_refused(name: str) -> None:
    with pytest.raises(KodaError, match="cannot be a run's name"):
        Run(name)


def test_record_names_every_file() -> None:
    with Run("r") as run:
        built = run.build("sft", "k", False, body)
    record = read_json(built / "stage.json")
    assert record["outputs"] == {"file.txt": {"size": 4, "sha256": record["outputs"]["file.txt"]["sha256"]}}
    assert record["key"] == "k" and record["figures"] == asdict(FIGURES) and "jax" in record["versions"]


def test_run_whose_process_keeps_dying_is_given_up() -> None:
    """What restarts crashed runs must not do so for ever: the fourth attempt without progress is refused."""
    for _ in range(LIMIT):
        die("dying")
    with pytest.raises(KodaError, match=f"died {LIMIT} times without getting further"):
        Run("dying").__enter__()
    with Run("dying"):  # a person who starts it again has a new budget
        pass


@pytest.mark.parametrize("progress", ["pretrain/checkpoints/{}/COMMIT.json", "tokenize/.blocks/tiktoken/{}.json"])
def test_run_that_gets_further_may_die_often(runs: Path, progress: str) -> None:
    for number in range(3 * LIMIT):
        die("advancing")
        file = runs / "advancing" / progress.format(number)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")


def refuse(config_text: str, error: Exception, progress: bool = False) -> None:
    """A command with this configuration that ends with an error, with or without a stage that it finished before."""
    with pytest.raises(type(error)), Run("r", config_text=config_text) as run:
        if progress:
            run.build("checkpoint", config_text, False, body)
        raise error


def test_settings_of_a_refused_command_are_put_back(runs: Path) -> None:
    """They would fail the next command too. Where the run got further they are what it was built under, and stay; and a
    crash refuses nothing, as the next attempt is to go on with them."""
    written = runs / "r/run.toml"
    with Run("r", config_text="[pretrain]\nsteps = 1\n"):
        pass
    refuse("[pretrain]\nsteps = 2\n", KodaError())
    assert written.read_text() == "[pretrain]\nsteps = 1\n"
    refuse("[pretrain]\nsteps = 3\n", RuntimeError())
    assert written.read_text() == "[pretrain]\nsteps = 3\n"
    refuse("[pretrain]\nsteps = 4\n", KodaError(), progress=True)
    assert written.read_text() == "[pretrain]\nsteps = 4\n"
    refuse("[pretrain]\nsteps = 5\n", KodaError(), progress=True)  # the same stage, rebuilt
    assert written.read_text() == "[pretrain]\nsteps = 5\n"
    refuse("", KodaError())  # a command that brings no settings
    assert written.read_text() == "[pretrain]\nsteps = 5\n"


@pytest.mark.parametrize(("error", "stays"), [(KodaError(), False), (RuntimeError(), True)])
def test_refused_command_begins_no_run(runs: Path, error: Exception, stays: bool) -> None:
    """The next command, with no settings of its own, would else be refused for the same ones. A crash is no refusal."""
    refuse("[pretrain]\nsteps = 0\n", error)
    assert (runs / "r/run.toml").is_file() == stays


def test_changed_settings_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    for steps in (1, 2):
        with Run("r", config_text=f"[pretrain]\nsteps = {steps}\nseed = 0\n"):
            pass
    assert capsys.readouterr().out == "changed    pretrain.steps = 2, was 1\n"


def test_what_is_no_setting_is_named_when_it_is_left_out(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a run.toml that was edited by hand, or that an earlier version wrote."""
    with Run("r", config_text="[tokenize]\nvocabsize = 512\nvocab_size = 9\n[x]\ny = 1\n"):
        pass
    with Run("r", config_text="[tokenize]\nvocab_size = 9\n"):
        pass
    assert capsys.readouterr().out.splitlines() == [
        "left out   tokenize.vocabsize is no setting (did you mean tokenize.vocab_size?)",
        "left out   x.y is no setting",
    ]


def test_damaged_configuration_is_refused_and_is_no_attempt(runs: Path) -> None:
    with Run("r", config_text="[pretrain]\nsteps = 1\n"):
        pass
    (runs / "r/run.toml").write_text("[pretrain\n")
    for _ in range(LIMIT + 1):
        with pytest.raises(KodaError, match=r"r/run\.toml cannot be read: .* Correct it by hand"):
            Run("r", config_text="[pretrain]\nsteps = 1\n").__enter__()
    assert (runs / "r/run.toml").read_text() == "[pretrain\n"
