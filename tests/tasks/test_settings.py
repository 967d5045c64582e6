"""What settings accept is what the code behind them knows."""

import re
from dataclasses import fields, replace
from typing import Any, get_args

import pytest

from model.config import Compute
from model.errors import KodaError
from model.training import optimizer as optimizers
from model.training.job import Job, Recipe
from tasks.extend import Extend
from tasks.pretrain import Model, Pretrain, advice
from tasks.sft import Sft
from tasks.training import TrainSection
from tests.model.training.test_optimizer import RECIPE

TRAININGS: tuple[type[TrainSection], ...] = (Pretrain, Sft, Extend)


def names(kind: Any) -> set[str]:
    return {field.name for field in fields(kind)}


@pytest.mark.parametrize(
    ("setting", "table"), [("optimizer", optimizers.OPTIMIZERS), ("schedule", optimizers.SCHEDULES)]
)
def test_choices_of_a_setting_are_those_of_its_table(setting: str, table: dict[str, Any]) -> None:
    for section in (TrainSection, *TRAININGS):
        assert set(get_args(section.model_fields[setting].annotation)) == table.keys()


@pytest.mark.parametrize("setting", ["optimizer", "schedule"])
def test_unknown_name_is_refused_and_not_trained_by_another(setting: str) -> None:
    with pytest.raises(KodaError, match=f"{setting} = 'other'") as refused:
        optimizers.build(replace(RECIPE, **{setting: "other"}), 128, "float32")
    table = optimizers.OPTIMIZERS if setting == "optimizer" else optimizers.SCHEDULES
    assert all(name in str(refused.value) for name in table)


def test_every_optimizer_and_schedule_can_be_built() -> None:
    for optimizer in optimizers.OPTIMIZERS:
        for schedule in optimizers.SCHEDULES:
            optimizers.build(replace(RECIPE, optimizer=optimizer, schedule=schedule), 128, "float32")


def test_every_field_of_a_recipe_is_a_setting_and_all_other_settings_belong_elsewhere() -> None:
    settings = set(Pretrain.model_fields)
    assert names(Recipe) <= settings
    # What the step computes in, where it is computed, how its processes are supervised, and what forecasts it.
    elsewhere = (
        {"dtype", "remat", "scan"},
        {"fsdp", "tensor"},
        {"segments", "processes", "hang_seconds", "copy_to", "track"},
        {"ladder"},
    )
    assert elsewhere[0] == names(Compute) and elsewhere[1] <= names(Job)
    assert settings - names(Recipe) == set.union(*elsewhere)


def test_recipe_has_the_values_of_the_settings() -> None:
    """Each set to a value that is not its default."""
    changed: dict[str, Any] = {"optimizer": "adamw", "schedule": "cosine"}
    changed |= {"decay_fraction": 0.123, "save_share": 0.01, "disk_share": 0.25, "processes": 1, "dropout": 0.1}
    for name, field in Pretrain.model_fields.items():
        if isinstance(field.default, bool):
            changed[name] = not field.default
        elif isinstance(field.default, int | float) and name not in changed:
            changed[name] = field.default + 1
    recipe = Pretrain(**changed).recipe()
    assert all(getattr(recipe, name) == changed[name] != Pretrain.model_fields[name].default for name in names(Recipe))


@pytest.mark.parametrize(
    ("text", "dropout", "advised"),
    [
        (100_000, 0.0, "reads the text 10 times, .*pretrain.steps = 391 would read it 4 times; with pretrain.dropout"),
        (50_000, 0.1, "reads the text 20 times, .*pretrain.steps = 293 would read it 6 times .docs"),
        (150_000, 0.1, ""),
        (220_000, 0.0, ""),
    ],
)
def test_fewer_steps_are_advised_where_a_text_is_learned_by_heart(text: int, dropout: float, advised: str) -> None:
    settings = Pretrain(steps=1000, batch_size=8, dropout=dropout)  # in rows of 128: a million tokens
    job = settings.job(Model().llama(512), folder="", train="", heldout="", end_of_text=0)
    assert re.match(advised, advice(job, text)) if advised else advice(job, text) == ""


@pytest.mark.parametrize("processes", [0, 2])
def test_replays_of_several_processes_are_refused(processes: int) -> None:
    assert Pretrain(replay_every_minutes=10).recipe().replay_every_minutes == 10
    with pytest.raises(ValueError, match="replay_every_minutes needs processes = 1"):
        Pretrain(replay_every_minutes=10, processes=processes)


@pytest.mark.parametrize("section", [Sft, Extend])
def test_shorter_trainings_lack_what_is_for_pretraining_alone(section: type[TrainSection]) -> None:
    assert names(Recipe) - section.model_fields.keys() == {"z_loss", "dropout", "isolate_documents", "snapshots"}
    recipe = section(steps=1).recipe()
    assert recipe.z_loss == recipe.dropout == recipe.snapshots == 0 and recipe.isolate_documents is False
    assert (recipe.steps, recipe.learning_rate) == (1, section().learning_rate)


def test_compute_has_the_values_of_the_settings() -> None:
    assert Pretrain(dtype="bfloat16", remat="dots", scan=True).compute() == Compute(
        dtype="bfloat16", remat="dots", scan=True
    )
    for field in fields(Compute):
        choices = get_args(Compute.__annotations__[field.name])
        assert set(get_args(TrainSection.model_fields[field.name].annotation)) == set(choices)
