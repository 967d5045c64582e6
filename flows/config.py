"""The configuration of a run: one model, loaded from a preset and overridden key by key."""

import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import tomli_w
from pydantic import ConfigDict, Field, ValidationError, model_validator

from model.data.strings import lone_surrogate, strings
from model.errors import KodaError
from model.figures import CorpusFigures
from tasks.about import About
from tasks.convert import Convert
from tasks.evaluate import Evaluate
from tasks.extend import Extend
from tasks.pretrain import Model, Pretrain
from tasks.publish import Publish
from tasks.runs.paths import RUN_TOML, STAGES, read_configuration
from tasks.runs.record import Built, read_built
from tasks.section import Section, nearest
from tasks.sft import Sft
from tasks.tokenize import Tokenize
from tasks.trackers import check_trackers
from tasks.training import TrainSection

Settings = dict[str, dict[str, Any]]  # section: {key: value}


class RunConfig(Section):
    """Everything that decides a run. `koda run --set section.key=value` changes one value."""

    model_config = ConfigDict(protected_namespaces=())

    about: About = Field(default_factory=About)
    """What exports and model cards state about the model."""
    model: Model = Field(default_factory=Model)
    """The network's shape."""
    tokenize: Tokenize = Field(default_factory=Tokenize)
    """Text to token shards."""
    pretrain: Pretrain = Field(default_factory=Pretrain)
    """Learning to continue text."""
    sft: Sft = Field(default_factory=Sft)
    """Learning to answer, and to stop."""
    extend: Extend = Field(default_factory=Extend)
    """A longer context."""
    convert: Convert = Field(default_factory=Convert)
    """Exports to the runtimes that people use."""
    evaluate: Evaluate = Field(default_factory=Evaluate)
    """Measuring the model."""
    publish: Publish = Field(default_factory=Publish)
    """Where the exports go."""

    def check_files(self, until: str) -> None:
        """Raise KodaError where a stage up to `until` (empty: any) would be refused for a file or a tracker that it
        names."""
        stages = self._stages(until).values()
        for section in stages:
            section.check()
        check_trackers({name for section in stages if isinstance(section, TrainSection) for name in section.track})

    def check_stages(self, until: str, tokens: Built[CorpusFigures]) -> None:
        """Raise KodaError where a stage up to `until` would be refused for these tokens, once a training was paid for;
        a stage that has a result has been through that."""
        for stage, section in self._stages(until).items():
            if read_built(tokens.folder.parent, stage) is None:
                section.check_tokens(tokens, self.model.max_position_embeddings)

    def _stages(self, until: str) -> dict[str, Section]:
        stages = STAGES[: STAGES.index(until) + 1] if until in STAGES else STAGES
        return {stage: getattr(self, stage) for stage in stages if hasattr(self, stage)}

    @model_validator(mode="after")
    def exportable(self) -> "RunConfig":
        if self.model.qk_norm and self.convert.formats:
            raise ValueError(
                f"model.qk_norm = true: {', '.join(self.convert.formats)} are written as architecture `llama`, which "
                "has no norm on queries and keys. Leave it off, or set convert.formats=[] to export nothing."
            )
        if misfit := self.convert.misfit(self.model.llama(vocab_size=1)):
            raise ValueError(f"{misfit} Choose another width, or other exports: convert.gguf, convert.mlx.")
        return self


def presets() -> list[str]:
    """The names of the presets."""
    return sorted(
        file.name.removesuffix(".toml")
        for file in resources.files("flows.presets").iterdir()
        if file.name.endswith(".toml")
    )


def begun_with(preset: str, run: Path | None) -> str:
    """The preset that counts: the one that is named, or that the run in this folder began with, or `tiny`."""
    if preset or run is None or not (run / RUN_TOML).is_file():
        return preset or "tiny"
    return str(read_configuration(run).get("preset", "tiny"))


def parsed(pairs: dict[str, str]) -> Settings:
    """Settings as a command line gives them, `section.key: text`, each value read as TOML reads it.

    A setting that takes a string takes the text as it was typed, where TOML would make a number, a truth value or a
    date of it: folders have such names.

    >>> parsed({"pretrain.steps": "200"})
    {'pretrain': {'steps': 200}}
    """
    settings: Settings = {}
    for key, text in pairs.items():
        section, _, name = key.partition(".")
        if not name:
            raise KodaError(f"--set {key}: settings are named section.key; the sections are {', '.join(_sections())}.")
        settings.setdefault(section, {})[name] = _value(text, _kinds(section, name))
    return settings


def load(preset: str, settings: Settings | None = None, run: Path | None = None) -> RunConfig:
    """A configuration with these settings laid over it, checked before anything runs.

    It is the preset's; where none is named, that of the run in the folder `run`, as its run.toml has it, or `tiny`'s
    for a run that is new. Raises KodaError naming the key and what would be accepted.
    """
    if not preset and run is not None and (run / RUN_TOML).is_file():
        raw = _known(read_configuration(run))
    else:
        preset = preset or "tiny"
        if preset not in presets():
            raise KodaError(
                f"there is no preset {preset!r}{nearest(preset, presets())}; the presets are {', '.join(presets())}."
            )
        raw = tomllib.loads((resources.files("flows.presets") / f"{preset}.toml").read_text(encoding="utf-8"))
    for section, values in (settings or {}).items():
        if section not in _sections():
            near = nearest(section, _sections())
            raise KodaError(f"there is no section {section!r}{near}; the sections are {', '.join(_sections())}.")
        raw.setdefault(section, {}).update(values)
        for key, value in values.items():
            if any(map(lone_surrogate, strings([value, list(value) if isinstance(value, dict) else ""]))):
                raise KodaError(
                    f"{section}.{key} = {value!r} is not UTF-8, as run.toml is. Rename that file or folder, or link "
                    "to it under another name."
                )
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise KodaError("\n".join(_explanations(error.errors()))) from None


def _sections() -> list[str]:
    return list(RunConfig.model_fields)


def _known(written: dict[str, Any]) -> dict[str, Any]:
    """What a run.toml sets, as far as there are such settings; `Run` reports what is left out."""
    sections = {name: field.annotation for name, field in RunConfig.model_fields.items()}
    return {
        section: {key: value for key, value in values.items() if key in sections[section].model_fields}  # type: ignore[union-attr]
        for section, values in written.items()
        if section in sections
    }


def as_toml(preset: str, config: RunConfig) -> str:
    """The whole configuration with every default written out, each value under what it means."""
    lines = ["# The preset that this began with.", tomli_w.dumps({"preset": preset})]
    for section, field in type(config).model_fields.items():
        values = getattr(config, section)
        lines += [f"# {field.description}", f"[{section}]"]
        for name, entry in type(values).model_fields.items():
            comment = " ".join((entry.description or "").split())
            lines += [f"# {comment}", _assignment(name, values.model_dump(mode="json")[name])]
        lines.append("")
    return "\n".join(lines)


def _assignment(name: str, value: Any) -> str:
    """`name = value` on one line, tables among them: a table of its own would take in what follows."""
    if not isinstance(value, dict):
        return tomli_w.dumps({name: value}).rstrip()
    pairs = (tomli_w.dumps({str(key): inner}).rstrip() for key, inner in value.items())
    return f"{name} = {{ {', '.join(pairs)} }}"


def _value(text: str, kinds: tuple[Any, ...]) -> Any:
    """A value of one of these types as TOML reads it; what TOML cannot read, or reads as another, is a plain string."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    is_container = isinstance(value, dict | list)
    return text if str in kinds and type(value) not in kinds and not is_container else value


def _kinds(section: str, name: str) -> tuple[Any, ...]:
    """The types that a setting takes; none where there is no such setting."""
    annotation = _annotation(section, name)
    return () if annotation is None else get_args(annotation) or (annotation,)


def _annotation(section: str, name: str) -> Any:
    """A setting's type; None where there is no such setting."""
    sections = {of: field.annotation for of, field in RunConfig.model_fields.items()}
    field = getattr(sections.get(section), "model_fields", {}).get(name)
    return field and field.annotation


def _explanations(problems: Sequence[Any]) -> list[str]:
    """A line for each value that cannot be used."""
    by_place: dict[tuple[Any, ...], list[Any]] = {}
    for problem in problems:
        place = problem["loc"]
        if len(place) > 2 and isinstance(_annotation(*place[:2]), UnionType):
            place = place[:2] + place[3:]  # without the type that did not fit
        by_place.setdefault(place, []).append(problem)
    # A value that is of the right type and has something wrong inside does not fit the other types either.
    outer = {place[:n] for place in by_place for n in range(len(place))}
    return [_explain(place, one) for place, one in by_place.items() if place not in outer]


def _explain(place: tuple[Any, ...], problems: list[Any]) -> str:
    path, problem = ".".join(map(str, place)), problems[0]
    if problem["type"] == "extra_forbidden":
        section = problem["loc"][0]
        known = list(RunConfig.model_fields[section].annotation.model_fields)  # type: ignore[union-attr]
        return f"there is no setting {path}{nearest(problem['loc'][-1], known)}; {section} has {', '.join(known)}."
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, KodaError | ValueError) and str(cause):
        return str(cause)
    wanted = " or ".join([problem["msg"], *(other["msg"].removeprefix("Input should be ") for other in problems[1:])])
    return f"{path} = {problem['input']!r}: {wanted[0].lower()}{wanted[1:]}."
