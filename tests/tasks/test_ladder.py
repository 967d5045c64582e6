"""A ladder of three sizes, trained for real by the supervised trainer."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from prefect.settings import get_current_settings

from flows.config import load, parsed
from model.errors import KodaError
from model.files import read_json
from model.ladder import rungs
from model.ladder.figures import Ladder
from model.training.job import Job
from model.training.records import JOB, read_metrics
from tasks import forecast, ladder
from tasks.reports.ladder_page import as_lines, page
from tasks.runs.record import Built, read_built
from tests.pipeline import SMALL

STEPS = 400
SETTINGS = {key: value for key, value in SMALL.items() if key.startswith(("tokenize.", "model.", "pretrain."))}
CONFIG = load("tiny", parsed({**SETTINGS, "pretrain.steps": str(STEPS)}))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, small_run: Path) -> Path:
    """A run whose text is tokenized."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    shutil.copytree(small_run / "runs/small/tokenize", folder / "tokenize")
    return folder


@pytest.fixture(scope="module")
def tokens(run: Path) -> Built:
    built = read_built(run, "tokenize")
    assert built is not None
    return built


def build(run: Path, tokens: Built, hours: float = 0.0) -> Ladder:
    return ladder.build(run, tokens, CONFIG.model, CONFIG.pretrain, CONFIG.evaluate, hours)


def own_job(run: Path) -> Job:
    """The run's own pretraining."""
    shape = CONFIG.model.llama(512)
    return CONFIG.pretrain.job(shape, folder=str(run / "pretrain"), train="", heldout="", end_of_text=0)


KILLED = """
import sys
from pathlib import Path
from pytest import MonkeyPatch
from tasks.runs.record import read_built
from tests.tasks import test_ladder
run = Path(sys.argv[1])
test_ladder.train_fewer(MonkeyPatch())
test_ladder.build(run, read_built(run, "tokenize"))
"""


def train_fewer(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rungs, "ENDS", (1 / 2, 3 / 4, 1))
    patch.setattr(ladder, "RATES", (2.0,))


@pytest.fixture(scope="module")
def built(run: Path, tokens: Built, prefect_server: None) -> Ladder:
    """Killed in the middle of its second size, and gone on with."""
    environment = {**os.environ, **get_current_settings().to_environment_variables(exclude_unset=True)}
    first = subprocess.Popen([sys.executable, "-c", KILLED, str(run)], env=environment, start_new_session=True)
    deadline = time.monotonic() + 300
    while not list(run.glob("ladder/2x32-*/metrics.jsonl")):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    with pytest.MonkeyPatch.context() as patch:
        train_fewer(patch)
        trainings: list[str] = []

        def counted(label: str, job: Job, ends: list[int], settings: object) -> object:
            trainings.append(Path(job.folder).name)
            return run_training(label, job, ends, settings)  # type: ignore[arg-type]

        run_training = ladder.run_training
        patch.setattr(ladder, "run_training", counted)
        finished = build(run, tokens)
        sizes = Counter(name.split("-")[0] for name in trainings)
        assert sizes.keys() == {"2x32", "2x48"} and sizes["2x48"] == 6  # the first size was finished
        count = len(trainings)
        assert build(run, tokens) == finished and len(trainings) == count
        return finished


def test_training_that_shares_its_beginning_is_the_one_that_it_would_have_been_alone(
    run: Path, built: Ladder, tmp_path: Path
) -> None:
    """To the bit: the plateau up to the decay is the same training, step by step."""
    shorter = built.trainings[0]
    branched = run / "ladder" / f"{shorter.rung}-{shorter.steps}"
    job = replace(Job.read(branched / "job.json"), folder=str(tmp_path), cache=None)
    job.write(tmp_path / JOB)
    command = [sys.executable, "-P", "-m", "model.training", str(tmp_path / JOB), str(job.recipe.steps)]
    subprocess.run(command, check=True)
    alone, with_others = read_metrics(tmp_path), read_metrics(branched)
    assert with_others.heldout[-1].heldout_loss == alone.heldout[-1].heldout_loss
    assert with_others.training[-1].loss == alone.training[-1].loss
    assert with_others.training[0].step > alone.training[0].step  # its first steps are the longer one's


def test_ladder_measures_every_training_and_fits_a_law(run: Path, built: Ladder) -> None:
    assert len(built.trainings) == 9 and len(built.rates) == 3
    assert all(2 < each.bits_per_byte < 6 for each in built.trainings)
    rate = CONFIG.pretrain.learning_rate
    assert {each.learning_rate for each in built.trainings} == {rate}
    assert {each.learning_rate for each in built.rates} == {2 * rate}
    for each in built.trainings:
        assert built.law(each.n, each.tokens) == pytest.approx(each.bits_per_byte, rel=0.05)
    assert not list((run / "ladder").glob("*/checkpoints")) and list((run / "ladder").glob("*/metrics.jsonl"))


def test_forecast_is_written_before_the_first_step_and_only_for_the_same_text(
    run: Path, built: Ladder, tokens: Built
) -> None:
    job = own_job(run)
    (run / "pretrain").mkdir()
    forecast.expect(run / "pretrain", job, "", tokens.key)
    expected = forecast.read_forecast(run / "pretrain")
    assert expected is not None and expected.forecast.low < expected.forecast.loss < expected.forecast.high
    assert expected.tokens == STEPS * CONFIG.pretrain.batch_size * 64 and 9 < expected.beyond < 11
    for step in ("checkpoints/20",):
        (run / "pretrain" / step).mkdir(parents=True)
        (run / "pretrain" / step / "COMMIT.json").touch()
    forecast.expect(run / "pretrain", job, "", "of another text")  # it has begun: what was said stays
    assert forecast.read_forecast(run / "pretrain") == expected
    shutil.rmtree(run / "pretrain")
    (run / "pretrain").mkdir()
    forecast.expect(run / "pretrain", job, "", "of another text")  # the text was changed since: it goes on without
    assert forecast.read_forecast(run / "pretrain") is None
    with pytest.raises(KodaError, match=f"another text or tokenizer .{tokens.key[:12]}.*of another"):
        forecast.forecasted(built, "small", job, "of another text")


def test_page_and_lines_show_the_trainings_and_the_forecast(run: Path, built: Ladder) -> None:
    html = page(run, built, own_job(run)).read_text(encoding="utf-8")
    for each in built.trainings:
        assert f"{each.bits_per_byte:.4f}" in html
    assert "is expected to reach" in html and "The best size for a budget" in html and "<script" not in html
    assert any(built.trainings[0].rung in line for line in as_lines(run))


def test_ladder_of_other_settings_is_set_aside(run: Path, built: Ladder, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "small")
    old = read_json(folder / "ladder/key.json")["key"]
    ladder._own_folder(folder, "other")
    assert not list((folder / "ladder").glob("*/metrics.jsonl"))
    assert (folder / f"ladder.{old[:8]}/ladder.json").is_file()
    ladder._own_folder(folder, old)
    assert (folder / "ladder/ladder.json").is_file() and (folder / "ladder.other").is_dir()


def test_other_rate_that_diverges_ends_no_ladder(
    run: Path, tokens: Built, prefect_server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "small"))
    (folder / "ladder/2x48.json").unlink()  # of the largest size, whose trainings keep no checkpoints

    def diverges(label: str, job: Job, ends: list[int], settings: object) -> None:
        if job.recipe.learning_rate != CONFIG.pretrain.learning_rate:
            raise KodaError("it died 3 times")
        (Path(job.folder) / f"checkpoints/{ends[-1]}").mkdir(parents=True, exist_ok=True)
        (Path(job.folder) / f"checkpoints/{ends[-1]}/COMMIT.json").touch()

    train_fewer(monkeypatch)
    monkeypatch.setattr(ladder, "run_training", diverges)
    monkeypatch.setattr(ladder, "retried_call", lambda *_, models, **__: [2.5] * len(models))
    result = build(folder, tokens)
    assert [each.rung for each in result.rates] == ["2x16", "2x32"] and len(result.trainings) == 9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrain.schedule": "cosine"}, "share a plateau"),
        ({"pretrain.decay_fraction": "0"}, "share a plateau"),
        ({"pretrain.processes": "0"}, "are started here"),
        ({"model.weights": "somebody/s"}, "imported weights"),
        ({"pretrain.steps": "12"}, "too few for a ladder"),
        ({"model.num_attention_heads": "2", "model.num_key_value_heads": "2"}, "3 smaller sizes"),
        ({"pretrain.steps": "200000"}, r"reads the [\d,]+ tokens [\d.]+ times"),
    ],
)
def test_ladder_that_cannot_be_is_refused_before_any_training(
    tmp_path: Path, tokens: Built, changes: dict[str, str], message: str
) -> None:
    config = load("tiny", parsed(SETTINGS | changes))
    with pytest.raises(KodaError, match=message):
        ladder.build(tmp_path, tokens, config.model, config.pretrain, config.evaluate, 0.0)
    assert not list(tmp_path.glob("ladder/*/job.json"))
