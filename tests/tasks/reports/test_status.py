"""How far a run is, from small records in its folder."""

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from model.errors import KodaError
from model.figures import EvaluateFigures, PublishFigures, TaskFigures
from model.files import append_line, write_json
from model.training.cadence import SaveCost
from model.training.heartbeat import Heartbeat
from model.training.records import METRICS, Event, TrainingMetrics, log_event
from tasks.reports.status import as_lines, closing_lines, status
from tasks.runs.lock import lock
from tasks.runs.paths import STAGES

SCORES = EvaluateFigures(
    bits_per_byte=2.3456,
    tasks={"word": TaskFigures(n=4, acc=0.75), "order": TaskFigures(n=4, acc=0.5)},
    bits_per_byte_final=2.4,
    bits_per_byte_by_source={},
    xz_bits_per_byte=3.0,
    ratio_to_xz=0.782,
    heldout_bytes=999,
    tasks_above_chance=1,
    samples=[],
)
PUBLISHED = PublishFigures(where="runs/mine/publish", files=9, bytes=999, commits={})


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run of 4000 steps that has built nothing yet."""
    monkeypatch.setenv("KODA_RUNS", str(tmp_path))
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "run.toml").write_text('preset = "tiny"\n[pretrain]\nsteps = 4000\n')
    return folder


@pytest.fixture
def locked(run: Path) -> Iterator[ExitStack]:
    """A process works on the run, until the test closes this."""
    with ExitStack() as stack:
        stack.enter_context(lock(run, "runs/mine"))
        yield stack


def record(run: Path, stage: str, figures: Any = None, reads: Iterable[str] = (), key: str = "") -> None:
    """A finished stage that was built from those that it `reads`."""
    facts = {"key": key or stage, "finished": "2026-01-01T00:00:00Z", "seconds": 61.0, "figures": figures or {}}
    facts["reads"] = {source: source for source in reads}  # each stage's key is its name
    write_json(run / stage / "stage.json", facts)


def train(run: Path, *steps: int, seconds_per_step: float = 2.0) -> None:
    """The training of a run has got to the last of these steps, and logged all of them."""
    training = run / "pretrain"
    training.mkdir(exist_ok=True)
    for step in steps:
        line = TrainingMetrics(step, seconds_per_step * step, 5.0, 1.0, 0.001, 8 * step, 0.0)
        append_line(training / METRICS, asdict(line))
    Heartbeat(training, time.time()).beat("train", steps[-1])


def states() -> dict[str, str]:
    return {stage["stage"]: stage["state"] for stage in status("mine")["stages"]}


def test_stages_of_a_run_that_has_built_nothing_wait(run: Path) -> None:
    assert states() == dict.fromkeys(STAGES, "waiting")
    report = status("mine")
    assert (report["name"], report["preset"], report["step"], report["steps"]) == ("mine", "tiny", 0, 4000)
    assert (report["restarts"], report["eta_seconds"], report["goodput"]) == (0, None, {})


def test_stage_without_a_record_is_running_while_the_run_is_locked_and_then_interrupted(
    run: Path, locked: ExitStack
) -> None:
    """Both of a stage that resumes, which works in its own place, and of one that is put there at its end."""
    record(run, "tokenize")
    (run / "pretrain").mkdir()
    (run / ".convert.building").mkdir()
    begun = {"tokenize": "done", "pretrain": "running", "convert": "running"}
    assert states() == dict.fromkeys(STAGES, "waiting") | begun
    locked.close()
    assert states() == dict.fromkeys(STAGES, "waiting") | begun | {"pretrain": "interrupted", "convert": "interrupted"}


def test_stage_that_was_built_from_an_earlier_result_is_stale(run: Path) -> None:
    """And so are those after it; the training that a stale one was has still reached its last step."""
    reads = dict(zip(STAGES[1:], STAGES, strict=False))
    for stage in STAGES:
        record(run, stage, reads=[reads[stage]] if stage in reads else [])
    assert {*states().values()} == {"done"}
    record(run, "sft", reads=["checkpoint"], key="another")
    fresh = STAGES[: STAGES.index("sft") + 1]
    assert states() == {stage: "done" if stage in fresh else "stale" for stage in STAGES}
    record(run, "tokenize", key="another")
    assert (states()["pretrain"], status("mine")["step"]) == ("stale", 4000)


def test_step_and_remaining_time_are_those_of_the_training(run: Path, locked: ExitStack) -> None:
    """The time is that of the remaining steps at the logged pace, while a process trains them."""
    train(run, 10, 20, 30)
    report = status("mine")
    assert (report["step"], report["eta_seconds"]) == (30, 2.0 * (4000 - 30))
    assert sum(report["goodput"].values()) == pytest.approx(100, abs=0.1)
    assert report["effective"] == {} == report["saves"]
    locked.close()
    report = status("mine")
    assert (report["step"], report["eta_seconds"]) == (30, None)


def test_effective_time_and_the_cost_of_saves_are_lines_of_the_status(run: Path) -> None:
    heart = Heartbeat(run / "pretrain", time.time())
    (run / "pretrain").mkdir()
    cost = SaveCost(stall=0.05, slowdown=0.03, write=3.0)
    heart.saves = {"interval": 20.0, "optimal_interval": cost.optimal_interval(), **asdict(cost)}
    heart.beat("train", 5)
    time.sleep(0.2)
    heart.beat("train", 6)
    report = status("mine")
    assert report["saves"] == heart.saves | {"optimal_interval": pytest.approx((2 * 0.08 * 3600) ** 0.5)}
    assert 0 < report["effective"]["share"] <= 1
    lines = "\n".join(as_lines(report))
    assert "a save every 20 s costs 0.08 s (least is lost with one every 24 s, with a fault an hour)" in lines
    assert "effective time: " in lines and "with a fault an hour, each of 10 s: " in lines


def test_finished_training_is_at_its_last_step(run: Path, locked: ExitStack) -> None:
    """Whatever its last heartbeat had."""
    train(run, 10, 20, 30)
    record(run, "pretrain")
    report = status("mine")
    assert (report["step"], report["eta_seconds"]) == (4000, None)


def test_restarts_are_counted(run: Path) -> None:
    train(run, 10)
    for event in (Event.ATTEMPT, Event.CRASH, Event.ATTEMPT, Event.DONE, Event.ATTEMPT, Event.ATTEMPT):
        log_event(run / "pretrain", event, 10)
    assert status("mine")["restarts"] == 2


def test_run_that_does_not_exist_is_refused(run: Path) -> None:
    with pytest.raises(KodaError, match="there is no run 'theirs'"):
        status("theirs")


def test_lines_report_progress_and_each_stage(run: Path, locked: ExitStack) -> None:
    figures = {"documents": 7, "stopped": True, "encoder": "tiktoken", "loss": 1.5}
    write_json(run / "tokenize/stage.json", {"seconds": 125.0, "figures": figures})
    train(run, 1000, 2000, seconds_per_step=1.0)
    for _ in range(2):
        log_event(run / "pretrain", Event.ATTEMPT, 0)
    head, *rows = as_lines(status("mine"))
    assert head == "mine (preset tiny) · step 2,000 of 4,000 · 1 restarts · 33 min left in pretraining"
    assert rows[0] == "  tokenize   done          2 min  documents 7 · loss 1.5"
    assert [row.split() for row in rows[1:3]] == [["pretrain", "running"], ["checkpoint", "waiting"]]
    assert len(rows) == len(STAGES) + 1 and rows[-1].startswith("  pretraining's time: ")


def test_closing_lines_of_a_finished_run_are_its_results_and_where_they_are(run: Path) -> None:
    """Where they are now: it was published in another folder than it has by now been copied to."""
    for stage in STAGES:
        record(run, stage, {"evaluate": SCORES, "publish": PUBLISHED}.get(stage))
    (run / "convert/gguf").mkdir()
    lines = closing_lines("mine")
    assert lines[:3] == [
        "",
        "mine: 2.346 bits per byte on held-out text, 0.78 × xz -9; 1 of 2 tasks above chance",
        f"  report     {run / 'report.html'}",
    ]
    assert f"  gguf       {run / 'convert/gguf'}" in lines and not any(line.startswith("  mlx ") for line in lines)
    assert f"  published  {run / 'publish'}" in lines and "koda chat mine" in lines[-1]


@pytest.mark.parametrize("missing", STAGES)
def test_closing_lines_of_a_run_that_ended_earlier_are_its_status(run: Path, missing: str) -> None:
    for stage in STAGES:
        if stage != missing:
            record(run, stage, {"evaluate": SCORES, "publish": PUBLISHED}.get(stage))
    assert closing_lines("mine") == ["", *as_lines(status("mine"))]


def test_closing_lines_of_a_run_with_a_stale_stage_are_its_status(run: Path) -> None:
    for stage in STAGES:
        record(run, stage, {"evaluate": SCORES, "publish": PUBLISHED}.get(stage))
    record(run, "extend", reads=["sft"])
    record(run, "sft", key="another")
    assert closing_lines("mine") == ["", *as_lines(status("mine"))]


@pytest.mark.parametrize("stage", ["evaluate", "publish"])
def test_closing_lines_of_a_run_with_figures_of_another_version_are_its_status(run: Path, stage: str) -> None:
    for each in STAGES:
        record(run, each, {"evaluate": SCORES, "publish": PUBLISHED}.get(each) if each != stage else None)
    assert closing_lines("mine") == ["", *as_lines(status("mine"))]
