"""The schema that Prefect makes the form of a run from."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from prefect import Flow
from pydantic_core import PydanticUndefined

from flows import stages
from flows.config import RunConfig
from flows.koda import pipeline
from flows.ladder import ladder
from tasks.runs.paths import STAGES

SECTIONS = list(RunConfig.model_fields)
PRESETS = {
    path.stem: tomllib.loads(path.read_text())
    for path in sorted((Path(__file__).parents[2] / "flows/presets").glob("*.toml"))
}
FORMS = {
    "pipeline": (pipeline, SECTIONS),
    "pretrain": (stages.pretrain, ["tokenize", "model", "pretrain"]),
    "sft": (stages.sft, ["sft"]),
    "extend": (stages.extend, ["extend"]),
    "convert": (stages.convert, ["about", "convert"]),
    "evaluate": (stages.evaluate, ["evaluate"]),
    "publish": (stages.publish, ["about", "publish"]),
    "ladder": (ladder, ["tokenize", "model", "pretrain"]),
}


def sections(flow: Flow) -> dict[str, Any]:
    """The sections in the form of a flow."""
    return flow.parameters.properties["settings"]["properties"]


def settings(section: str) -> dict[str, Any]:
    """The fields of a section, in their order."""
    return sections(pipeline)[section]["properties"]


def described(section: str) -> dict[str, Any]:
    """The settings of a section, as the configuration describes them."""
    return RunConfig.model_fields[section].annotation.model_fields


def plain(value: Any) -> Any:
    """A value as it comes back from JSON; nothing is as an empty text."""
    return json.loads(json.dumps(value)) if value is not None else ""


def shown(words: str, name: str) -> Any:
    """The value that the words of a field show under a name: `Default`, or a preset's; None where it shows none."""
    if f"{name} empty" in words:
        return ""
    if not (match := re.search(rf"(?:^|; ){re.escape(name)} `([^`]*)`", words)):
        return None
    try:
        return json.loads(match[1])
    except ValueError:
        return match[1]


@pytest.mark.parametrize(("flow", "names"), FORMS.values(), ids=FORMS)
def test_form_has_every_setting_of_its_sections(flow: Flow, names: list[str]) -> None:
    assert list(sections(flow)) == names
    for name, section in sections(flow).items():
        assert section["properties"].keys() == described(name).keys()
        assert section["description"] == RunConfig.model_fields[name].description


@pytest.mark.parametrize("section", SECTIONS)
def test_field_shows_description_default_and_the_values_of_presets_in_words(section: str) -> None:
    """And no value: the UI would send it, and it would override that of the run."""
    for key, field in settings(section).items():
        setting = described(section)[key]
        description, _, words = field["description"].partition("\n\n")
        assert description == " ".join(setting.description.split()), key
        assert "default" not in field, key
        default = setting.get_default(call_default_factory=True)
        assert default is not PydanticUndefined and shown(words, "Default") == plain(default), key
        for preset, values in PRESETS.items():
            assert shown(words, preset) == values.get(section, {}).get(key), (key, preset)


def test_words_of_a_field_are_exact() -> None:
    """Of one with a bound, of one with two, and of one that is a text."""
    assert settings("pretrain")["steps"]["description"].endswith(
        "\n\nDefault `2000`; koda-1.3b `48828`; koda-124m `20000`; koda-400m `10000`; tiny `3000`; more than 0"
    )
    assert settings("extend")["chat_share"]["description"].endswith("\n\nDefault `0.25`; at least 0; less than 1")
    assert settings("publish")["to"]["description"].endswith("\n\nDefault `local`")


@pytest.mark.parametrize("section", SECTIONS)
def test_boolean_offers_a_third_state(section: str) -> None:
    """The UI makes a switch of type `boolean`, which sends false if left alone; a list of values can be left empty."""
    for key, setting in described(section).items():
        field = settings(section)[key]
        if setting.annotation is bool:
            assert "type" not in field and field["enum"] == [True, False], key
        else:
            assert field.get("type") != "boolean" and field.get("enum") != [True, False], key


@pytest.mark.parametrize("section", SECTIONS)
def test_own_settings_of_a_section_come_before_those_of_every_training(section: str) -> None:
    own = RunConfig.model_fields[section].annotation.__annotations__
    positions = [key in own for key in settings(section)]
    assert positions == sorted(positions, reverse=True)
    assert all(positions) == (section not in ("pretrain", "sft", "extend"))


def test_nothing_in_a_form_has_to_be_filled_in() -> None:
    for flow, _ in FORMS.values():
        assert not flow.parameters.required
        for section in sections(flow).values():
            assert "required" not in section and section["additionalProperties"] is False


def test_fields_that_take_one_of_a_list_can_be_left_empty() -> None:
    parameters = pipeline.parameters.properties
    assert parameters["preset"]["enum"] == ["", *PRESETS]
    assert parameters["start"]["enum"] == parameters["until"]["enum"] == ["", *STAGES]


def test_setting_that_takes_a_text_or_a_table_names_the_two() -> None:
    field = settings("tokenize")["source"]
    assert [(kind["title"], kind["type"]) for kind in field["anyOf"]] == [("One", "string"), ("Several", "object")]
