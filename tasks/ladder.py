"""A ladder: small trainings of a run's family on its own text, the law that fits them, and forecasts by it."""

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from model.data.shards import Shards
from model.errors import KodaError
from model.files import read_json, write_json
from model.ladder.figures import Ladder, Training
from model.ladder.law import LEAST, fit
from model.ladder.rungs import FEWEST, RATES, SHARE, Rung, affordable, chosen, rungs, total_steps
from model.training.job import Job
from model.training.records import CHECKPOINTS, newest_step
from tasks.devices import platforms
from tasks.evaluate import Evaluate
from tasks.forecast import LADDER, RESULT
from tasks.pretrain import READINGS, Model, Pretrain, pretraining
from tasks.progress import log_line
from tasks.runs.record import Built
from tasks.runs.up_to_date import stage_key
from tasks.stage import retried_call
from tasks.supervise import call
from tasks.training import run_training
from tasks.typed import typed

PLAN, KEY = "plan.json", "key.json"  # in the ladder's folder
SHARES = [SHARE * 2 ** (step / 2) for step in range(-10, 7)]  # of the target's compute, that a budget chooses from
START = 10.0  # seconds of a process before it trains, where a budget is divided up


@dataclass(frozen=True)
class Planned:
    """One training of a ladder: where it lies, and the training whose beginning it shares."""

    rung: Rung
    job: Job
    trunk: Job | None  # None: it has its beginning to itself

    @property
    def folder(self) -> Path:
        return Path(self.job.folder)

    def figures(self, bits: float) -> Training:
        recipe, rung = self.job.recipe, self.rung
        return Training(rung.name, rung.n, recipe.steps, self.job.tokens, recipe.learning_rate, round(bits, 5))


def build(run: Path, tokens: Built, model: Model, pretrain: Pretrain, evaluate: Evaluate, hours: float) -> Ladder:
    """Train, measure and fit the ladder of a run in its folder; it goes on where it was interrupted. `hours`: what it
    may take on these devices; 0: each rung's longest training a tenth of the run's compute.

    Raises KodaError where no ladder fits the settings or the hours.
    """
    check(model, pretrain)
    key = stage_key(LADDER, 2, (model, pretrain, tokens, [hours, evaluate.max_bytes]))
    folder = _own_folder(run, key)
    base = pretraining(pretrain, model, tokens, folder)
    base = replace(base, recipe=replace(base.recipe, snapshots=0, evaluate_every_steps=base.recipe.steps))
    ladder = _planned(folder, base, pretrain, hours)
    _check_text(ladder, base, tokens)
    settings = pretrain.model_copy(update={"copy_to": ""})
    finished = [figures for rung in ladder for figures in _trained(folder, rung, base, settings, tokens, evaluate)]
    trainings = [each for each in finished if each.learning_rate == pretrain.learning_rate]
    result = Ladder(
        text=tokens.key,
        trainings=trainings,
        rates=[each for each in finished if each not in trainings],
        law=fit([each.point for each in trainings]),
        flops=sum(6 * rung.n * base.tokens_per_step * total_steps(rung, base.recipe) for rung in ladder),
    )
    write_json(folder / RESULT, asdict(result))
    return result


def check(model: Model, pretrain: Pretrain) -> None:
    """Raise KodaError for settings that no ladder can have."""
    if model.weights:
        raise KodaError("the run begins with imported weights: there is no training of its own to forecast.")
    if pretrain.schedule != "wsd" or not pretrain.decay_fraction:
        raise KodaError(
            f"pretrain.schedule = {pretrain.schedule}, decay_fraction = {pretrain.decay_fraction:g}: the trainings of "
            "a ladder share a plateau, and fall from it one after the other. wsd with a decay would do."
        )
    if not pretrain.processes:
        raise KodaError("pretrain.processes = 0: the trainings of a ladder are started here. 1 would do.")
    chosen(model.llama(vocab_size=1))  # which refuses too few heads, whatever the vocabulary


def _own_folder(run: Path, key: str) -> Path:
    """The ladder's folder; one with other settings is set aside, and an earlier one with these settings taken back."""
    folder, earlier = run / LADDER, run / f"{LADDER}.{key[:8]}"
    if (folder / KEY).is_file() and (old := read_json(folder / KEY)["key"]) != key:
        aside = run / f"{LADDER}.{old[:8]}"
        folder.rename(aside)
        log_line(f"ladder     the one with other settings is now {aside}")
    if earlier.is_dir() and not folder.exists():
        earlier.rename(folder)
    folder.mkdir(exist_ok=True)
    write_json(folder / KEY, {"key": key})
    return folder


def _planned(folder: Path, base: Job, pretrain: Pretrain, hours: float) -> list[Rung]:
    """The rungs, as an earlier attempt planned them; planned now where there was none."""
    if (folder / PLAN).is_file():
        return typed(list[Rung], read_json(folder / PLAN))
    recipe = base.recipe

    def ladder(share: float) -> list[Rung]:
        return rungs(base.model, base.tokens, recipe.batch_size, recipe.warmup_steps, share)

    if hours:
        ladders = [ladder(share) for share in SHARES]
        shapes = {rung.name: rung.model for each in ladders for rung in each}
        jobs = [asdict(replace(base, model=shape)) for shape in shapes.values()]
        log = folder / "ladder.log"
        seconds = call("model.training.pace:seconds_per_step", log, list[float], environment=platforms(), jobs=jobs)
        by_name = dict(zip(shapes, seconds, strict=True))
        planned = affordable(ladders, by_name, recipe, START, 3600 * hours)
    else:
        planned = ladder(SHARE)
    if len(planned) < FEWEST or sum(len(rung.steps) for rung in planned) < LEAST:
        raise KodaError(
            f"pretrain.steps = {recipe.steps:,}: too few for a ladder, whose shortest trainings would hardly be past "
            f"their warm-up of {recipe.warmup_steps}. More steps, or a smaller pretrain.warmup_steps, would do."
        )
    write_json(folder / PLAN, [asdict(rung) for rung in planned])
    for rung in planned:
        log_line(f"ladder     {rung.name}: N {rung.n / 1e6:.3g} M, {', '.join(f'{s:,}' for s in rung.steps)} steps")
    return planned


def _check_text(ladder: list[Rung], base: Job, tokens: Built) -> None:
    """Raise KodaError where a training would read the text too often for a law of new text."""
    available = len(Shards(tokens / "train"))
    epochs = max(rung.steps[-1] for rung in ladder) * base.tokens_per_step / available
    if epochs > READINGS:
        raise KodaError(
            f"the longest training of the ladder reads the {available:,} tokens {epochs:.1f} times: its law would be "
            f"about text that is repeated. {READINGS} times are all right; use more text, or fewer pretrain.steps."
        )
    if epochs > 1:
        log_line(f"ladder     the longest training reads the text {epochs:.1f} times")


def planned_trainings(folder: Path, rung: Rung, base: Job) -> Iterator[Planned]:
    """The trainings of a rung, in the order in which they are trained."""

    def job(steps: int, rate: float) -> Job:
        suffix = "" if rate == base.recipe.learning_rate else f"-{rate:g}"
        recipe = replace(base.recipe, steps=steps, learning_rate=rate)
        return replace(base, model=rung.model, recipe=recipe, folder=str(folder / f"{rung.name}-{steps}{suffix}"))

    rate = base.recipe.learning_rate
    longest = job(rung.steps[-1], rate)
    for steps in rung.steps[:-1]:
        yield Planned(rung, job(steps, rate), longest)
    yield Planned(rung, longest, None)
    for times in RATES:
        yield Planned(rung, job(rung.steps[0], times * rate), None)


def _trained(
    folder: Path, rung: Rung, base: Job, pretrain: Pretrain, tokens: Built, evaluate: Evaluate
) -> list[Training]:
    """Train and measure a rung, where an earlier attempt has not."""
    done, every = folder / f"{rung.name}.json", list(planned_trainings(folder, rung, base))
    if done.is_file():
        _drop_checkpoints(every)
        return typed(list[Training], read_json(done))
    for each in [*every]:
        try:
            _train(each, pretrain)
        except KodaError as error:
            if each.job.recipe.learning_rate == pretrain.learning_rate:
                raise
            every.remove(each)  # at another rate a training may diverge: that is an answer too
            log_line(f"ladder     {rung.name} at {each.job.recipe.learning_rate:g}: {error}")
    last = [each.folder / CHECKPOINTS / str(each.job.recipe.steps) for each in every]
    measured = retried_call(
        "model.evaluation.suite:text_bits",
        folder / "ladder.log",
        list[float],
        models=[str(path) for path in last],
        tokens=tokens.folder,
        max_bytes=evaluate.max_bytes,
    )
    figures = [each.figures(bits) for each, bits in zip(every, measured, strict=True)]
    write_json(done, [asdict(each) for each in figures])
    _drop_checkpoints(every)
    for result in figures:
        log_line(
            f"ladder     {rung.name}, {result.steps:,} steps at {result.learning_rate:g}: "
            f"{result.bits_per_byte:.4f} bits per byte"
        )
    return figures


def _drop_checkpoints(trainings: list[Planned]) -> None:
    """The curves stay; a checkpoint has the optimizer in it."""
    for each in trainings:
        shutil.rmtree(each.folder / CHECKPOINTS, ignore_errors=True)


def _train(planned: Planned, pretrain: Pretrain) -> None:
    """Take a training to its last step, from the beginning that it shares."""
    recipe, name = planned.job.recipe, planned.rung.name
    branch = recipe.decay_start()
    if planned.trunk is not None and branch < recipe.steps:
        _to_step(planned.trunk, branch, pretrain, name)
        _copy_checkpoint(Path(planned.trunk.folder), planned.folder, branch)
    _to_step(planned.job, recipe.steps, pretrain, name)


def _to_step(job: Job, step: int, pretrain: Pretrain, label: str) -> None:
    """Train to a step, where it is not there yet."""
    if newest_step(Path(job.folder)) < step:
        Path(job.folder).mkdir(exist_ok=True)
        run_training(label, job, [step], pretrain)


def _copy_checkpoint(source: Path, target: Path, step: int) -> None:
    """Give a training the checkpoint that another one's first steps are; the commit file comes last, by the rename."""
    checkpoint, place = source / CHECKPOINTS / str(step), target / CHECKPOINTS / str(step)
    if newest_step(target) >= step or not checkpoint.exists():  # without it, it makes these steps itself
        return
    aside = place.with_name(f".{step}.copying")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(checkpoint, aside)
    aside.rename(place)
