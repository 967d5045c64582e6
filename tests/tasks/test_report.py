"""The pages about runs, made of small records that no training was needed for."""

import io
import json
import re
from pathlib import Path
from typing import Any

import matplotlib.colors
import numpy as np
import PIL.Image
import pytest

from tasks import plots
from tasks.compare import compare
from tasks.recorded import Recorded
from tasks.report import report

HOSTILE = "<script>alert('&')</script>"
ESCAPED = "&lt;script&gt;alert(&#x27;&amp;&#x27;)&lt;/script&gt;"
TASKS = {
    "word": {"acc": 0.7, "chance": 0.25, "longest": 0.31, "unigram": 0.22, "calibration_error": 0.123, "n": 40},
    "last_word": {"acc": 0.3, "chance": 0.04, "longest": None, "unigram": None, "calibration_error": None, "n": 40},
}
ARC = {
    "acc": 0.3,
    "acc_norm": 0.35,
    "stderr": 0.07,
    "chance": 0.25,
    "calibration_error": 0.08,
    "perplexity": None,
    "n": 40,
}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def stage(run: Path, name: str, figures: dict[str, Any], outputs: dict[str, str] | None = None, **more: Any) -> None:
    record = {
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
    write(run / name / "stage.json", json.dumps(record))


def new(folder: Path, name: str, rows: int = 8) -> Path:
    """A run that has made nothing yet."""
    run = folder / name
    write(
        run / "run.toml",
        f'preset = "tiny"\n[tokenize]\nsource = "{HOSTILE}"\n[model]\nhidden_size = 64\n'
        f'[pretrain]\nsteps = 40\nbatch_size = {rows}\nlearning_rate = 0.004\noptimizer = "muon"\nschedule = "wsd"\n',
    )
    return run


def tokenized(run: Path, heldout: str) -> None:
    """Give a run text; `heldout` is the hash of the held-out part."""
    corpus = {"documents": 9, "train_tokens": 999, "heldout_tokens": 99, "vocab_size": 512, "bytes_per_token": 3.2}
    stage(run, "tokenize", corpus, {"tokenizer.json": "aa11", "train/00000.npy": "bb22", "heldout/00000.npy": heldout})


def begun(folder: Path, name: str, rows: int = 8) -> Path:
    """A run in the middle of pretraining: text, a curve with a restart at step 20, and nothing more."""
    run = new(folder, name, rows)
    tokenized(run, "cc33")
    metrics = [
        {
            "step": s,
            "time": s / 10,
            "loss": 8 - s / 10,
            "learning_rate": 0.004,
            "grad_norm": 1.0,
            "tokens": s * rows * 64,
        }
        for s in range(5, 45, 5)
    ]
    metrics.append({"step": 40, "time": 4.1, "heldout_loss": 4.5})
    write(run / "pretrain/metrics.jsonl", "".join(json.dumps(line) + "\n" for line in metrics))
    events: list[dict[str, Any]] = [
        {"event": "life", "step": 0, "time": 0.0},
        {"event": "start", "step": 0, "time": 0.1, "devices": 2, "device": "NVIDIA L40S"},
        {"event": "crash", "step": 20, "time": 2.1, "cause": HOSTILE},
        {"event": "life", "step": 20, "time": 2.2},
        {"event": "resume", "step": 20, "time": 2.3, "devices": 2, "device": "NVIDIA L40S"},
        {
            "event": "spent",
            "step": 40,
            "time": 4,
            "began": 0.0,
            "first_step": 0,
            "seconds": {"train": 5400, "save": 1800},
        },
    ]
    write(run / "pretrain/events.jsonl", "".join(json.dumps(line) + "\n" for line in events))
    return run


def finished(folder: Path, name: str, rows: int = 8, right: str = "1" * 28 + "0" * 12) -> Path:
    """The same after pretraining and evaluation; `right` has a digit for each item of the task `word`."""
    run = begun(folder, name, rows)
    stage(run, "pretrain", {"parameters": 2000, "tokens": 20480, "steps": 40, "heldout_loss": 4.5, "restarts": 1})
    scores = {
        "bits_per_byte": 1.43,
        "bits_per_byte_final": 1.54,
        "xz_bits_per_byte": 1.95,
        "ratio_to_xz": 0.73,
        "bits_per_byte_by_source": {HOSTILE: 1.4321},
        "heldout_bytes": 1000,
        "tasks_above_chance": 2,
        "tasks": {task: {"acc_norm": None, "stderr": 0.05, "perplexity": None, **f} for task, f in TASKS.items()},
        "standard": {"arc_easy": ARC},
        "samples": [{"prompt": "The", "text": f" answer of {name} {HOSTILE}"}],
    }
    stage(run, "evaluate", scores, settings={"evaluate": {"standard": "items"}})
    answers = [digit == "1" for digit in right]
    write(run / "evaluate/right.json", json.dumps({"homemade": {"word": answers}, "standard": {"arc_easy": answers}}))
    return run


def rows_of(page: str) -> list[list[str]]:
    """The cells of every row of every table, without their marks."""
    found = re.findall(r"<tr>(.*?)</tr>", page)
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in found]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The report of a run, and its comparison with another."""
    folder = tmp_path_factory.mktemp("runs")
    run = finished(folder, "a")
    return [report(run).read_text(), compare(run, finished(folder, "b", rows=4)).read_text()]


def test_nothing_is_fetched(pages: list[str]) -> None:
    for page in pages:
        assert "<svg" in page
        assert not re.search(r"""(?:src|href)\s*=\s*["']?(?!["']?(?:#|data:))""", page)
        assert not re.search(r"@import|url\((?!#)", page)
        assert "<script" not in page


def test_everything_is_escaped(pages: list[str]) -> None:
    """Of what runs bring along: the sample, the source of text and of the figure by source, the cause of a crash."""
    assert all("<script" not in page for page in pages)
    assert pages[0].count(ESCAPED) >= 4 and pages[1].count(ESCAPED) >= 3


def test_what_is_known_of_a_task_stands_beside_its_score(pages: list[str]) -> None:
    found = rows_of(pages[0])
    assert ["word", "70.0", "5.0", "25.0", "31.0", "22.0", "12.3", "40"] in found
    assert ["last_word", "30.0", "5.0", "4.0", "", "", "", "40"] in found
    published = ["25.0", "32.8", "49.0", "55.2"]  # chance, KodaLite, Pythia, TinyLlama
    assert ["arc_easy acc_norm", "35.0", "7.0", "8.0", "40", *published] in found
    assert ["mean of those with choices", "35.0", "", "", "", *published] in found
    assert "TinyLlama-1.1B (3T): https://arxiv.org/abs/2401.02385" in pages[0]
    assert [ESCAPED, "1.4321"] in found


def test_restarts_and_device_hours_are_told(pages: list[str]) -> None:
    assert "Restarts, dashed, from step 20." in pages[0]
    assert ["pretraining", "2 × NVIDIA L40S", "4", "4.00"] in rows_of(pages[0])  # 2 h, at a dollar each


def test_a_restart_is_no_slow_training(tmp_path: Path) -> None:
    """Ten steps of 512 tokens a second; the wait between the lives, after step 20, is nobody's speed."""
    speeds = Recorded(begun(tmp_path, "a")).speeds("pretrain")
    assert [step for step, _ in speeds] == [10, 15, 20, 30, 35, 40]
    assert {round(speed) for _, speed in speeds} == {5120}


def test_stages_that_are_missing_are_left_out(tmp_path: Path) -> None:
    run = begun(tmp_path, "young")
    headings = re.findall(r"<h2>(.*?)</h2>", report(run).read_text())
    assert headings == ["What was trained", "Pretraining", "Cost", "Lineage", "Configuration"]
    assert "Nothing is done yet." in report(new(tmp_path, "new")).read_text()
    page = compare(finished(tmp_path, "old"), run).read_text()
    assert "answer of old" not in page and ["pretrain", "61 s", "–"] in rows_of(page)
    compare(run, tmp_path / "new")


def test_only_settings_that_differ_are_listed(pages: list[str]) -> None:
    assert ["pretrain.batch_size", "8", "4"] in rows_of(pages[1])
    assert not any(row[0] in ("pretrain.steps", "tokenize.source") for row in rows_of(pages[1]) if row)
    assert ">tokens</text>" in pages[1]  # other batches: the curves also lie over the tokens


def test_two_runs_are_compared_item_by_item(tmp_path: Path) -> None:
    """Of 40 items the second wins six and loses none: 2 / 2⁶ by the exact test."""
    run = finished(tmp_path, "a")
    better = finished(tmp_path, "b", right="1" * 34 + "0" * 6)
    found = rows_of(compare(run, better).read_text())
    tested = [row for row in found if row[0] in ("word", "arc_easy")]
    assert [(row[-2].split(" ")[0], row[-1]) for row in tested] == [("+15.0", "0.0312")] * 2


def test_other_held_out_text_is_not_compared_item_by_item(tmp_path: Path) -> None:
    run, other = finished(tmp_path, "a"), finished(tmp_path, "b")
    tokenized(other, "other")
    page = compare(run, other).read_text()
    assert "Same tokenizer, other text" in page
    assert [row for row in rows_of(page) if row[0] == "word"] == [["word", "70.0 ± 5.0", "70.0 ± 5.0"]]


def test_a_picture_for_a_card_reads_on_dark_paper(tmp_path: Path) -> None:
    """The ink that a page replaces by its own is nowhere in it, the legend included."""
    picture = plots.png(plots.loss(Recorded(begun(tmp_path, "a")).metrics("pretrain"), [20]))
    pixels = np.array(PIL.Image.open(io.BytesIO(picture)).convert("RGB"))
    ink = np.round(255 * np.array(matplotlib.colors.to_rgb(plots.INK)))
    assert not (pixels == ink).all(axis=-1).any()
