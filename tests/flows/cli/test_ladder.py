"""What `koda ladder` refuses at once, and what `koda plan --ladder` makes of a finished one."""

from dataclasses import asdict
from pathlib import Path

import pytest

from flows.cli.main import main
from flows.cli.plan import as_lines, planned
from flows.config import as_toml, load, parsed
from model.errors import KodaError
from model.files import read_json, write_json
from model.ladder.figures import Ladder, Training
from model.ladder.law import Law
from tasks.forecast import finished_ladder
from tasks.runs.up_to_date import stage_key
from tasks.tokenize import tokenize

LAW = Law(floor=0.5, a=46_000.0, alpha=0.8, b=900_000.0, beta=1.0, gamma=0.3)
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
    text = stage_key("tokenize", tokenize.version, (load("tiny").tokenize,))
    write_json(folder / "ladder/ladder.json", asdict(Ladder(text, trainings, [], LAW, 1e12)))
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


def test_plan_takes_the_text_of_the_ladder_for_another_preset(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = (
        "model.num_hidden_layers=2",
        "model.hidden_size=192",
        "model.intermediate_size=384",
        "model.max_position_embeddings=128",
        "pretrain.batch_size=4",
    )
    sets = [part for each in (*small, "pretrain.remat=dots", "pretrain.scan=true") for part in ("--set", each)]
    assert main(["plan", "--preset", "koda-124m", *sets, "--ladder", "climbed", "--gpu", "H100", "--count", "1"]) == 0
    assert "by the ladder of climbed" in capsys.readouterr().out


def test_plan_says_where_a_ladder_has_no_best_size(run: Path) -> None:
    written = read_json(run / "ladder/ladder.json")
    write_json(run / "ladder/ladder.json", written | {"law": written["law"] | {"b": 0.0}})
    text = "\n".join(as_lines(planned("tiny", SCANNED, "H100", 1, None, None, run)))
    assert "there is no best size" in text and "by the ladder of climbed" in text


def test_plan_refuses_a_ladder_of_another_text(run: Path) -> None:
    other = parsed({"tokenize.vocab_size": "2048"})
    with pytest.raises(KodaError, match=r"'climbed' is of another text or tokenizer \(.*\) than this run's \(.*\)"):
        planned("tiny", {**SCANNED, **other}, "H100", 1, None, None, run)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ladder", "tiny", "--hours", "-1"], "--hours is above 0"),
        (["ladder", "tiny", "--hours", "nan"], "--hours is above 0"),
        (["ladder", "tiny", "--set", "tokenize.source=nowhere"], "nowhere"),
        (["ladder", "tiny", "--set", "pretrain.schedule=cosine"], "share a plateau"),
        (["ladder", "tiny", "--set", "pretrain.processes=0"], "are started here"),
        (
            ["ladder", "tiny", "--set", "model.num_attention_heads=2", "--set", "model.num_key_value_heads=2"],
            "a ladder needs 3 smaller sizes",
        ),
        (["run", "--name", "tiny", "--set", "pretrain.ladder=nobody"], "there is no run 'nobody'"),
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


def test_ladder_with_a_law_of_an_earlier_form_is_fitted_again(run: Path) -> None:
    written = read_json(run / "ladder/ladder.json")
    earlier = {name: value for name, value in written["law"].items() if name != "beta"}
    write_json(run / "ladder/ladder.json", written | {"law": earlier})
    found = finished_ladder(run).law
    assert found(5e5, 2e6) == pytest.approx(LAW(5e5, 2e6), rel=2e-3)
    few = {"trainings": written["trainings"][:6]}  # too few for the law of now: it counts as none
    write_json(run / "ladder/ladder.json", written | few | {"law": earlier})
    with pytest.raises(KodaError, match="has no finished ladder"):
        finished_ladder(run)
