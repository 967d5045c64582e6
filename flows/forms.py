"""The form that the Prefect UI shows before a run: the settings with their titles, descriptions and bounds."""

import json
import tomllib
from functools import cache
from importlib import resources
from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from flows.config import RunConfig, Settings, presets
from tasks.runs.paths import NAME

BOUNDS = {"minimum": "at least", "exclusiveMinimum": "more than", "maximum": "at most", "exclusiveMaximum": "less than"}


def field(title: str, choices: list[str] | None = None, **bounds: Any) -> Any:
    """A parameter of a flow, as the UI titles it; `choices` are all that it takes, beside nothing."""
    extra: dict[str, Any] = {"title": title} | ({"enum": ["", *choices]} if choices else {})
    return Field(json_schema_extra=extra, **bounds)


Name = Annotated[str, field("Name", pattern=NAME)]
Preset = Annotated[str, field("Preset", presets())]


def form(*sections: str) -> Any:
    """The type of a flow's parameter that takes settings of these sections, all of them where none is named.

    No field has to be filled in: what is left out is as the preset or the run has it, so that a field shows its default
    in words and not as a value, which would be laid over the run's.
    """
    fields = {name: _section(name) for name in sections or RunConfig.model_fields}
    schema = {"type": "object", "properties": fields, "additionalProperties": False}
    return Annotated[Settings, WithJsonSchema(schema), field("Settings")]


def _section(name: str) -> dict[str, Any]:
    section: Any = RunConfig.model_fields[name].annotation
    fields = section.model_json_schema()["properties"]
    own = sorted(fields, key=lambda key: key not in section.__annotations__)  # before those that every training has
    return {
        "type": "object",
        "title": name.capitalize(),
        "description": RunConfig.model_fields[name].description,
        "properties": {key: _setting(name, key, fields[key]) for key in own},
        "additionalProperties": False,
    }


def _setting(section: str, key: str, schema: dict[str, Any]) -> dict[str, Any]:
    described, default = schema.pop("description", ""), schema.pop("default", None)
    values = [f"Default {_value(default)}"]
    values += [f"{name} {_value(of[section][key])}" for name, of in _presets().items() if key in of.get(section, {})]
    values += [f"{words} {schema[bound]}" for bound, words in BOUNDS.items() if bound in schema]
    if schema.get("type") == "boolean":  # the UI's switch has no third state: left alone, it would mean no
        del schema["type"]
        schema["enum"] = [True, False]
    for one in schema.get("anyOf", ()):
        one["title"] = {"string": "One", "object": "Several"}[one["type"]]
    title = key.replace("_", " ").capitalize()
    return {**schema, "title": title, "description": f"{' '.join(described.split())}\n\n{'; '.join(values)}"}


def _value(value: Any) -> str:
    return "empty" if value in ("", None) else f"`{value if isinstance(value, str) else json.dumps(value)}`"


@cache
def _presets() -> dict[str, dict[str, Any]]:
    folder = resources.files("flows.presets")
    return {name: tomllib.loads((folder / f"{name}.toml").read_text(encoding="utf-8")) for name in presets()}
