"""What `koda ladder` refuses at once, and what `koda plan --ladder` makes of a finished one."""

from dataclasses import asdict
from pathlib import Path

import pytest

from flows.cli.main import main
from flows.cli.plan import as_lines, planned
from flows.config import as_toml, load, parsed
from model.errors import KodaError
from model.files import write_json
from model.ladder.figures import Ladder, Training
from model.ladder.law import Law

LAW = Law(floor=0.9, a=30.0, alpha=0.33, b=60.0, beta=0.31)
SCANNED = parsed({"pretrain.remat": "dots", "pretrain.scan": "true"})  # compiled in less time


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of the preset `tiny` with a ladder whose law is LAW."""
    monkeypatch.setenv("KODA_RUNS", str(tmp_path))
    trainings = [
        Training(f"2x{width}", n, steps, steps * 1024, 4e-3, LAW(n, steps * 1024))
        for width, n in ((32, 1.7e5), (64, 3.8e5), (96, 6.4e5))
        for steps in (300, 600, 1200, 2400)
    ]
    folder = tmp_path / "climbed"
    (folder / "ladder").mkdir(parents=True)
    (folder / "run.toml").write_text(as_toml("tiny", load("tiny")), encoding="utf-8")
    write_json(folder / "ladder/ladder.json", asdict(Ladder("text", trainings, [], LAW, 1e12)))
    return folder


def test_plan_forecasts_by_a_ladder_and_has_its_best_size(run: Path) -> None:
    needs = planned("tiny", SCANNED, "H100", 1, None, None, run)
    n, tokens = needs["forecast"]["n"], needs["forecast"]["tokens"]
    assert needs["forecast"]["forecast"]["loss"] == pytest.approx(LAW(n, tokens), rel=1e-3)
    best = needs["best_for_the_compute"]
    assert 6 * best["parameters"] * best["tokens"] == pytest.approx(6 * n * tokens, rel=1e-3)
    assert best["bits_per_byte"] <= needs["forecast"]["forecast"]["loss"]
    text = "\n".join(as_lines(needs))
    assert "by the ladder of climbed" in text and "tokens for each parameter" not in text


def test_plan_refuses_a_ladder_of_another_text(run: Path) -> None:
    other = parsed({"tokenize.vocab_size": "2048"})
    with pytest.raises(KodaError, match=r"'climbed' is of another text .*vocab_size is 4096 there and 2048 here"):
        planned("tiny", {**SCANNED, **other}, "H100", 1, None, None, run)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ladder", "tiny", "--hours", "-1"], "--hours is above 0"),
        (["ladder", "tiny", "--hours", "nan"], "--hours is above 0"),
        (["ladder", "tiny", "--set", "tokenize.source=nowhere"], "nowhere"),
        (["plan", "--ladder", "nobody"], "there is no run 'nobody'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setenv("KODA_RUNS", str(tmp_path / "runs"))
    assert main(arguments) == 1
    printed = capsys.readouterr().err
    assert message in printed and printed.count("koda: ") == 1
    assert not (tmp_path / "runs/tiny").exists()


def test_plan_refuses_a_run_without_a_ladder(run: Path) -> None:
    (run / "ladder/ladder.json").unlink()
    with pytest.raises(KodaError, match=r"'climbed' has no finished ladder: `koda ladder climbed` makes it"):
        planned("tiny", SCANNED, "H100", 1, None, None, run)
