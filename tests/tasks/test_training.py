from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from model.config import LlamaConfig
from model.errors import KodaError
from model.files import append_line
from model.training.records import METRICS, Event, HeldoutMetrics, log_event, newest_step
from tasks import training
from tasks.pretrain import Pretrain
from tasks.training import EventEcho, peers


def test_events_are_printed_once_and_only_those_that_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not what an earlier attempt logged, and not a resume that was planned: the first segment ended before it."""
    log_event(tmp_path, Event.CRASH, 3, cause="earlier")
    log_event(tmp_path, Event.DONE, 10)
    echo = EventEcho(tmp_path, "pretrain")
    for event, step, cause in ((Event.ATTEMPT, 10, ""), (Event.RESUME, 10, ""), (Event.CRASH, 1234, "of this cause")):
        log_event(tmp_path, event, step, cause=cause)
        echo.print_new()
    echo.print_new()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("pretrain") and all(part in line for part in ("crash", "1,234", "of this cause"))
    log_event(tmp_path, Event.RESUME, 10)
    echo.print_new()
    assert "resume" in capsys.readouterr().out


def test_newest_step_is_that_of_a_committed_checkpoint(tmp_path: Path) -> None:
    assert newest_step(tmp_path) == 0
    for name, file in (
        ("20", "COMMIT.json"),
        ("100", "COMMIT.json"),
        ("120", "arrays"),
        ("140.corrupt", "COMMIT.json"),
    ):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / file).touch()
    assert newest_step(tmp_path) == 100


def test_gpus_are_shared_out_evenly_among_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "gpus", lambda: dict.fromkeys("0123", 0.0))
    assert peers(1) == [{}]
    first, second = peers(2)
    assert (first["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"]) == ("0,1", "2,3")
    assert first["JAX_COORDINATOR_ADDRESS"] == second["JAX_COORDINATOR_ADDRESS"]
    assert [peer["JAX_PROCESS_ID"] for peer in (first, second)] == ["0", "1"]
    with pytest.raises(KodaError, match="4 GPUs"):
        peers(3)


@pytest.mark.parametrize(("loss", "warns"), [(69.9, True), (5.77, True), (5.76, False)])
def test_training_that_is_worse_than_guessing_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    shape: LlamaConfig,
    loss: float,
    warns: bool,
) -> None:
    """A guess among the 320 tokens of its vocabulary is at ln 320 = 5.768."""
    monkeypatch.setattr(training, "segment", SimpleNamespace(with_options=lambda **_: lambda *_: None))
    append_line(tmp_path / METRICS, asdict(HeldoutMetrics(7, 1.0, loss)))
    settings = Pretrain(steps=7)
    job = settings.job(shape, folder=str(tmp_path), train="", heldout="", end_of_text=0)
    assert training.run_training("pretrain", job, [7], settings).heldout_loss == loss
    printed = capsys.readouterr().out
    assert (f"held-out loss {loss:.2f} is worse than guessing (5.77)" in printed) == warns
    assert ("a smaller pretrain.learning_rate helps" in printed) == warns
