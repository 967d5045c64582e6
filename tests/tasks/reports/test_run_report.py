"""The pages about runs, from small records that need no training."""

import io
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib.colors
import numpy as np
import PIL.Image
import pytest

from model.figures import CorpusFigures, EvaluateFigures, PretrainFigures, Sample, TaskFigures
from model.files import append_line, write_json
from model.training.records import EVENTS, METRICS, Event, HeldoutMetrics, TrainingMetrics
from tasks.reports import drawing, plots
from tasks.reports.comparison import compare
from tasks.reports.recorded import RecordedRun
from tasks.reports.run_report import REMEDIES, report
from tasks.supervise import Death

HOSTILE = "<script>alert('&')</script>"
ESCAPED = "&lt;script&gt;alert(&#x27;&amp;&#x27;)&lt;/script&gt;"
CORPUS = CorpusFigures(
    documents=9,
    heldout_documents=1,
    train_tokens=999,
    heldout_tokens=99,
    vocab_size=512,
    end_of_text=256,
    train_bytes=3200,
    heldout_bytes=1000,
    bytes_per_token=3.2,
    read=10,
    dropped={},
    copies=0,
    near_evaluation_items={},
    longest_document=800,
    longest_document_name="a.txt",
    encoder="tiktoken",
    encoder_why="",
    commits={},
    notes=0,
)
PRETRAINED = PretrainFigures(parameters=2000, tokens=20480, steps=40, heldout_loss=4.5, restarts=1)
WORD = TaskFigures(n=40, acc=0.7, stderr=0.05, chance=0.25, longest=0.31, unigram=0.22, calibration_error=0.123)
LAST_WORD = TaskFigures(n=40, acc=0.3, stderr=0.05, chance=0.04)
ARC = TaskFigures(n=40, acc=0.3, acc_norm=0.35, stderr=0.07, chance=0.25, calibration_error=0.08)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def record(run: Path, name: str, figures: Any, outputs: dict[str, str] | None = None, **more: Any) -> None:
    """A finished stage, whose `outputs` have these hashes."""
    contents = {
        "stage": name,
        "key": name * 8,
        "seconds": 61.0,
        "finished": "2026-01-01T00:00:00Z",
        "figures": figures,
        "settings": {},
        "reads": {},
        "versions": {"python": "3.11.7", "jax": "0.10.2"},
        "outputs": {path: {"size": 7, "sha256": digest} for path, digest in (outputs or {}).items()},
        **more,
    }
    write_json(run / name / "stage.json", contents)


def new_run(folder: Path, name: str, rows: int = 8) -> Path:
    """A run that has no results yet; `rows` in a step."""
    run = folder / name
    write(
        run / "run.toml",
        f'preset = "tiny"\n[tokenize]\nsource = "{HOSTILE}"\n[model]\nhidden_size = 64\n'
        f'[pretrain]\nsteps = 40\nbatch_size = {rows}\nlearning_rate = 0.004\noptimizer = "muon"\nschedule = "wsd"\n',
    )
    return run


def record_corpus(run: Path, heldout: str) -> None:
    """Record a run's corpus; `heldout` is the hash of the held-out part."""
    record(run, "tokenize", CORPUS, {"tokenizer.json": "aa11", "train/00000.npy": "bb22", "heldout/00000.npy": heldout})


def run_in_pretraining(folder: Path, name: str, rows: int = 8) -> Path:
    """A run with a corpus, and a curve with a restart at step 20."""
    run = new_run(folder, name, rows)
    record_corpus(run, "cc33")
    (run / "pretrain").mkdir()
    for step in range(5, 45, 5):
        line = TrainingMetrics(step, step / 10, 8 - step / 10, 1.0, 4e-3, step * rows * 64, 0.0)
        append_line(run / "pretrain" / METRICS, asdict(line))
    append_line(run / "pretrain" / METRICS, asdict(HeldoutMetrics(40, 4.1, 4.5)))
    hardware = {"devices": 2, "device": "NVIDIA L40S"}
    spent = {"began": 0.0, "first_step": 0, "ended": 7200.0, "seconds": {"train": 5400, "save": 1800}}
    events: list[tuple[Event, int, float, dict[str, Any]]] = [
        (Event.ATTEMPT, 0, 0.0, {}),
        (Event.START, 0, 0.1, hardware),
        (Event.CRASH, 20, 2.1, {"cause": HOSTILE, "death": Death.MEMORY, "reached": 27, "last_line": HOSTILE}),
        (Event.ATTEMPT, 20, 2.2, {}),
        (Event.RESUME, 20, 2.3, hardware),
        (Event.SPENT, 40, 4.0, spent),
    ]
    for event, step, seconds, more in events:
        append_line(run / "pretrain" / EVENTS, {"event": event, "step": step, "time": seconds, **more})
    return run


def evaluated_run(folder: Path, name: str, rows: int = 8, right: str = "1" * 28 + "0" * 12) -> Path:
    """The same after pretraining and evaluation; `right` has a digit for each item of the task `word`."""
    run = run_in_pretraining(folder, name, rows)
    record(run, "pretrain", PRETRAINED)
    scores = EvaluateFigures(
        bits_per_byte=1.43,
        bits_per_byte_final=1.54,
        xz_bits_per_byte=1.95,
        ratio_to_xz=0.73,
        bits_per_byte_by_source={HOSTILE: 1.4321},
        heldout_bytes=1000,
        tasks_above_chance=2,
        tasks={"word": WORD, "last_word": LAST_WORD},
        standard={"arc_easy": ARC},
        samples=[Sample("The", f" answer of {name} {HOSTILE}")],
    )
    record(run, "evaluate", scores, settings={"evaluate": {"standard": "items"}})
    answers = [digit == "1" for digit in right]
    write_json(run / "evaluate/right.json", {"homemade": {"word": answers}, "standard": {"arc_easy": answers}})
    return run


def rows_of(page: str) -> list[list[str]]:
    """The cells of every row of every table, without their tags."""
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in re.findall(r"<tr>(.*?)</tr>", page)]


def headings(page: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The report of a run, and its comparison with another."""
    folder = tmp_path_factory.mktemp("runs")
    run = evaluated_run(folder, "a")
    return [report(run).read_text(), compare(run, evaluated_run(folder, "b", rows=4)).read_text()]


def test_pages_fetch_nothing(pages: list[str]) -> None:
    for page in pages:
        assert "<svg" in page
        assert not re.search(r"""(?:src|href)\s*=\s*["']?(?!["']?(?:#|data:))""", page)
        assert not re.search(r"@import|url\((?!#)", page)
        assert "<script" not in page


def test_everything_is_escaped(pages: list[str]) -> None:
    """What a run records: the sample, the source of text and of the figure by source, the cause of a crash."""
    assert all("<script" not in page for page in pages)
    assert pages[0].count(ESCAPED) >= 4 and pages[1].count(ESCAPED) >= 3


def test_figures_of_a_task_are_beside_its_score(pages: list[str]) -> None:
    rows = rows_of(pages[0])
    assert ["word", "70.0", "5.0", "25.0", "31.0", "22.0", "12.3", "40"] in rows
    assert ["last_word", "30.0", "5.0", "4.0", "", "", "", "40"] in rows
    published = ["25.0", "32.8", "49.0", "55.2"]  # chance, KodaLite, Pythia, TinyLlama
    assert ["arc_easy acc_norm", "35.0", "7.0", "40", *published] in rows
    assert ["mean of those with choices", "35.0", "", "", *published] in rows
    assert "TinyLlama-1.1B (3T): https://arxiv.org/abs/2401.02385" in pages[0]
    assert [ESCAPED, "1.4321"] in rows


def test_restarts_and_device_hours_are_reported(pages: list[str]) -> None:
    assert re.search(r"Restarts[^<]*\b20\b", pages[0])
    assert ["pretraining", "2 × NVIDIA L40S", "4", "4.00"] in rows_of(pages[0])  # 2 h, at a dollar each


def test_death_is_reported_with_its_last_line_and_what_would_prevent_it(pages: list[str]) -> None:
    (row,) = (row for row in rows_of(pages[0]) if row[1:3] == [ESCAPED, ESCAPED])
    assert row[3:] == [REMEDIES[Death.MEMORY], "27", "20"] and "gradient_accumulation_steps" in row[3]
    assert set(REMEDIES) == set(Death)


def test_restart_is_no_slow_training(tmp_path: Path) -> None:
    """Ten steps of 512 tokens a second; the wait between the attempts, after step 20, is left out."""
    speeds = RecordedRun(run_in_pretraining(tmp_path, "a")).speeds("pretrain")
    assert [step for step, _ in speeds] == [10, 15, 20, 30, 35, 40]
    assert {round(speed) for _, speed in speeds} == {5120}


def test_stages_that_are_not_done_are_left_out(tmp_path: Path, pages: list[str]) -> None:
    young, empty = run_in_pretraining(tmp_path, "young"), new_run(tmp_path, "new")
    assert set(headings(report(empty).read_text())) < set(headings(report(young).read_text())) < set(headings(pages[0]))
    assert "Pretraining" in headings(report(young).read_text()) and "Evaluation" in headings(pages[0])
    page = compare(evaluated_run(tmp_path, "old"), young).read_text()
    assert "answer of old" not in page and ["pretrain", "61 s", "–"] in rows_of(page)
    assert headings(compare(young, empty).read_text())


def test_only_settings_that_differ_are_listed(pages: list[str]) -> None:
    assert ["pretrain.batch_size", "8", "4"] in rows_of(pages[1])
    assert not any(row[0] in ("pretrain.steps", "tokenize.source") for row in rows_of(pages[1]) if row)
    assert ">tokens</text>" in pages[1]  # other batches: the curves also lie over the tokens


def test_runs_with_the_same_items_are_compared_item_by_item(tmp_path: Path) -> None:
    """Of 40 items the second wins six and loses none: 2 / 2⁶ by the exact test."""
    run = evaluated_run(tmp_path, "a")
    better = evaluated_run(tmp_path, "b", right="1" * 34 + "0" * 6)
    tested = [row for row in rows_of(compare(run, better).read_text()) if row[0] in ("word", "arc_easy")]
    assert [(row[-2].split(" ")[0], row[-1]) for row in tested] == [("+15.0", "0.0312")] * 2


def test_runs_with_other_held_out_text_are_not_compared_item_by_item(tmp_path: Path) -> None:
    run, other = evaluated_run(tmp_path, "a"), evaluated_run(tmp_path, "b")
    record_corpus(other, "other")
    page = compare(run, other).read_text()
    assert "Same tokenizer, other text" in page
    assert [row for row in rows_of(page) if row[0] == "word"] == [["word", "70.0 ± 5.0", "70.0 ± 5.0"]]


def test_picture_for_a_card_is_legible_on_a_dark_page(tmp_path: Path) -> None:
    """The colour that a page replaces by its own is nowhere in it, the legend included."""
    picture = drawing.png(plots.loss(RecordedRun(run_in_pretraining(tmp_path, "a")).metrics("pretrain"), [20]))
    pixels = np.array(PIL.Image.open(io.BytesIO(picture)).convert("RGB"))
    ink = np.round(255 * np.array(matplotlib.colors.to_rgb(drawing.INK)))
    assert not (pixels == ink).all(axis=-1).any()
