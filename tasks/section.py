"""Sections of the configuration: each stage's settings are beside the stage, in `tasks/<stage>.py`."""

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

if TYPE_CHECKING:  # it is above this module
    from model.figures import CorpusFigures
    from tasks.runs.record import Built

# A setting that changes how a stage goes about its work and not what it makes: it is left out of the stage's key.
OPERATIONAL: dict[str, Any] = {"operational": True}
# A setting that came later: at its default a stage makes what it made without it, and its key is what it was.
ADDED: dict[str, Any] = {"added": True}


def one_of(names: Iterable[str]) -> Any:
    """The type of a setting that takes one of these names: a Literal made from a table."""
    return Literal[tuple(names)]


def weighted(source: str | dict[str, float]) -> dict[str, float]:
    """Each source, and how often it is read; one alone is read once."""
    return {source: 1.0} if isinstance(source, str) else source


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is most like this one, as an error adds it; empty where none is."""
    near = difflib.get_close_matches(str(name), [*known], 1)
    return f" (did you mean {near[0]}?)" if near else ""


class Section(BaseModel):
    """Settings of one stage. The docstring under a field is its help, its title in the UI, its comment in run.toml."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _one(cls, value: Any, info: ValidationInfo) -> Any:
        """One text where several are taken is a list of one."""
        several = get_origin(cls.model_fields[str(info.field_name)].annotation) is tuple
        return (value,) if several and isinstance(value, str) else value

    def fingerprint(self) -> str:
        """What the stage reads besides its settings and the stages before it: a corpus, a file."""
        return ""

    def check(self) -> None:
        """Raise KodaError for a file or folder that these settings name and that cannot be read as what it is for."""

    def check_tokens(self, tokens: "Built[CorpusFigures]", context: int) -> None:
        """Raise KodaError where the stage could not use these tokens after a training in rows of `context` tokens."""

    def decisive(self) -> dict[str, Any]:
        """The settings that decide what the stage makes."""
        left_out = {
            name
            for name, field in type(self).model_fields.items()
            if isinstance(extra := field.json_schema_extra, dict)
            and (extra.get("operational") or (extra.get("added") and getattr(self, name) == field.default))
        }
        return {**self.model_dump(mode="json", exclude=left_out), "reads": self.fingerprint()}
