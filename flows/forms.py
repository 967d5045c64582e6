"""What the Prefect UI asks before a run: the settings with their titles, their meaning and their bounds."""

import tomllib
from functools import cache
from importlib import resources
from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from flows.config import RunConfig, Settings, presets
from tasks.run import NAME

Name = Annotated[str, Field(pattern=NAME)]
Preset = Annotated[str, Field(json_schema_extra={"enum": ["", *presets()]})]


def form(*sections: str) -> Any:
    """The type of a flow's parameter that takes settings of these sections, all of them where none is named.

    No field has to be filled in: what is left out is as the preset or the run has it, so that a field shows its default
    in words and not as a value, which would be laid over the run's.
    """
    fields = {name: _section(name) for name in sections or RunConfig.model_fields}
    schema = {"type": "object", "title": "Settings", "properties": fields, "additionalProperties": False}
    return Annotated[Settings, WithJsonSchema(schema)]


def _section(name: str) -> dict[str, Any]:
    field = RunConfig.model_fields[name]
    schema = field.annotation.model_json_schema()  # type: ignore[union-attr]
    fields = {}
    for key, of in schema["properties"].items():
        default = of.pop("default", None)
        named = {preset: values[name][key] for preset, values in _presets().items() if key in values.get(name, {})}
        said = [f"Default: {default!r}", *(f"{preset}: {value!r}" for preset, value in named.items())]
        described = f"{' '.join(of.get('description', '').split())} {'; '.join(said)}."
        fields[key] = {**of, "title": key.replace("_", " ").capitalize(), "description": described}
    return {
        "type": "object",
        "title": name.capitalize(),
        "description": field.description,
        "properties": fields,
        "additionalProperties": False,
    }


@cache
def _presets() -> dict[str, dict[str, Any]]:
    folder = resources.files("flows.presets")
    return {name: tomllib.loads((folder / f"{name}.toml").read_text(encoding="utf-8")) for name in presets()}
