"""`koda inspect`: the page about a finished run, and what it is in a run that is not finished."""

import re
import shutil
from pathlib import Path

import pytest

from flows.cli.main import main
from model.files import read_json, write_json
from tasks.reports.inspect_guide import GUIDE


@pytest.fixture(scope="module")
def runs(finished_run: Path) -> Path:
    return finished_run.parent


@pytest.fixture(autouse=True)
def of_this_folder(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs.parent)
    monkeypatch.setenv("KODA_RUNS", str(runs))


def text_of(page: Path) -> str:
    return re.sub(r"<[^>]+>", " ", page.read_text(encoding="utf-8"))


@pytest.mark.timeout(900)
def test_page_of_a_finished_run(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One file below 3 MB that refers to no other; its parts, and figures that are those of the run."""
    assert main(["inspect", "small"]) == 0
    page = finished_run / "inspect/index.html"
    assert capsys.readouterr().out.strip() == str(page)
    html, seen = page.read_text(encoding="utf-8"), read_json(finished_run / "inspect/inspect.json")
    assert len(html.encode()) < 3e6 and "<script" not in html
    outside = re.findall(r"""(?:src|href)=["']?(?!#|data:)([^"' >]+)""", html)
    assert not outside, outside
    assert all(mark in re.findall(r' id="([a-z]+)"', html) for mark in re.findall(r'href="#([a-z]+)"', html))
    for guide in GUIDE.values():  # every picture names its code
        assert guide.code in text_of(page), guide
    learned = seen["learning"]
    assert learned["kept"] and learned["steps"][0] == 0 and learned["steps"][-1] == 120
    assert learned["losses"][-1] < learned["losses"][0]
    # A snapshot's held-out loss is the training's, on other rows and in half the bits.
    recorded = read_json(finished_run / "checkpoint/stage.json")["figures"]["heldout_loss"]
    assert learned["losses"][-1] == pytest.approx(recorded, abs=0.3)
    parts = [sum(values[n] for values in seen["text"]["attribution"].values()) for n in range(2)]
    assert parts == pytest.approx(seen["text"]["logits"], abs=1e-3)
    assert seen["finetuning"]["looked_at"] == 16 and seen["stretching"]["after"] == 128
    answers = seen["origins"]["answers"]
    assert "Yes." in "".join(answers[1]["pieces"]) and seen["origins"]["searched"].keys() == {"tokenize", "sft"}
    assert main(["report", "small"]) == 0
    assert 'href="inspect/index.html"' in (finished_run / "report.html").read_text(encoding="utf-8")
    prompt = read_json(finished_run / "sft/data/prompts.json")[0]["messages"][-1]["content"]
    assert [answer["prompt"] for answer in answers] == ["After the text above", prompt]
    shutil.copytree(finished_run, finished_run.with_name("twin"))
    assert main(["report", "small", "twin"]) == 0
    assert "How their heads learned" in (finished_run / "report-against-twin.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["small", "--text", "word " * 200], "--text has \\d+ tokens, the model's context is 64"),
        (["small", "--text", "a"], "--text 'a' is 1 token"),
        (["other"], "there is no run 'other'"),
    ],
)
def test_text_that_does_not_fit_is_one_error(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", *arguments]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1


def test_run_in_training_shows_its_snapshots_so_far(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two of them, and nothing of what comes after; the text spells a special token, and is read as letters."""
    run = Path(shutil.copytree(finished_run, finished_run.with_name("young")))
    for stage in ("checkpoint", "sft", "extend"):
        shutil.rmtree(run / stage)
    for snapshot in (run / "pretrain/snapshots").iterdir():
        if snapshot.name not in ("0", "32"):
            shutil.rmtree(snapshot)
    assert main(["inspect", "young", "--text", "The <|endoftext|> of"]) == 0
    seen = read_json(run / "inspect/inspect.json")
    assert seen["learning"]["steps"] == [0, 32] and seen["finetuning"] is None
    assert len(seen["text"]["pieces"]) > 6 and "read as letters" in text_of(run / "inspect/index.html")
    (run / "pretrain/snapshots/32/COMMIT.json").unlink()
    (run / "pretrain/snapshots/0/COMMIT.json").unlink()
    assert main(["inspect", "young"]) == 1
    assert "has no weights yet" in capsys.readouterr().err


def test_weights_of_another_text_are_refused(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After `koda run --set tokenize.… --until tokenize`: the ids of the new tokenizer mean nothing to them."""
    run = Path(shutil.copytree(finished_run, finished_run.with_name("moved")))
    shutil.rmtree(run / "inspect", ignore_errors=True)
    record = read_json(run / "tokenize/stage.json")
    write_json(run / "tokenize/stage.json", {**record, "finished": "later"})
    assert main(["inspect", "moved"]) == 1
    assert "pretrain of runs/moved was built from an earlier tokenize" in capsys.readouterr().err
    assert not (run / "inspect").exists()


def test_run_without_snapshots_says_how_to_have_them(finished_run: Path) -> None:
    """And a fine-tuning of weights that were trained again since is not shown."""
    run = Path(shutil.copytree(finished_run, finished_run.with_name("old")))
    shutil.rmtree(run / "pretrain/snapshots")
    record = read_json(run / "sft/stage.json")
    write_json(run / "sft/stage.json", {**record, "reads": {"checkpoint": "earlier"}})
    assert main(["inspect", "old"]) == 0
    assert "pretrain.snapshots = 24" in text_of(run / "inspect/index.html")
    seen = read_json(run / "inspect/inspect.json")
    assert not seen["learning"]["kept"] and seen["finetuning"] is None
