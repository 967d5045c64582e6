"""Stage 8: exports → three repositories with model cards, in a local folder or on the Hub."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from pydantic import field_validator

from model.errors import KodaError
from model.export.formats import FORMATS
from model.export.formats.format import Format
from model.figures import ConvertFigures, CorpusFigures, EvaluateFigures, ExtendFigures, PublishFigures
from model.files import atomic_write, link_file, listing, read_json, write_checksums, write_json
from tasks import hub
from tasks.about import About
from tasks.progress import progress
from tasks.reports.hub_results import eval_results
from tasks.reports.model_card import card, curve_picture
from tasks.runs.paths import STAGES, folder_of
from tasks.runs.record import Built, changed_outputs, read_built, read_record
from tasks.runs.up_to_date import check_inputs
from tasks.section import Section
from tasks.stage import stage
from tasks.trackers.mirror import identify
from tasks.trackers.tensorboard import event_folder

# A file for TensorBoard, by its usual name: the second in which it was begun, the machine, its process.
EVENTS = re.compile(r"(events\.out\.tfevents\.\d+)\.[\w.-]+")


class Publish(Section):
    to: str = "local"
    """`local` lays the repositories out in the run's folder; USER/NAME also uploads them to the Hub, with the token in
    HF_TOKEN or in the Prefect Secret block `hf-token`."""
    private: bool = True
    """Repositories that are made on the Hub are private at first."""
    new_version: str = ""
    """The repository of a newer model, USER/NAME: the Hub then shows it on the page of this one."""

    @field_validator("to")
    @classmethod
    def place(cls, to: str) -> str:
        if to != "local":
            _check("publish.to", to, "`local`, or USER/NAME for the Hub", [repository(to, f) for f in FORMATS.values()])
        return to

    @field_validator("new_version")
    @classmethod
    def newer(cls, name: str) -> str:
        if name:
            _check("publish.new_version", name, "USER/NAME on the Hub", [name])
        return name


def _check(setting: str, value: str, takes: str, repositories: list[str]) -> None:
    """Raise ValueError where one of these is no name of a repository."""
    if "/" not in value:
        raise ValueError(f"{setting} = {value!r}: it takes {takes}.")
    try:
        for name in repositories:
            validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"{setting} = {value!r}: {error}") from None


@stage(version=4)
def publish(
    out: Path,
    settings: Publish,
    about: About,
    exports: Built[ConvertFigures],
    scores: Built[EvaluateFigures],
    model: Built[ExtendFigures],
    tokens: Built[CorpusFigures],
) -> PublishFigures:
    """Lay out hf/, gguf/ and mlx/, each with its card, checksums and lineage; upload them if `to` is on the Hub."""
    if settings.to != "local":
        hub.check(settings.to)
    configuration = (exports.folder.parent / "run.toml").read_text(encoding="utf-8")
    formats = lay_out(out, settings, configuration, about, exports, scores, model, tokens)
    commits = {}
    if settings.to != "local":
        with progress("publish", len(formats)) as watch:
            for number, format_ in enumerate(formats):
                place = repository(settings.to, format_)
                watch(number, place)
                upload = hub.upload.with_options(task_run_name=f"upload {place}")
                try:
                    commits[format_.name] = upload(place, out / format_.name, settings.private)
                except KodaError:
                    raise
                except Exception as error:  # its retries are spent; those of the stage would multiply them
                    raise KodaError(
                        f"{place} could not be brought up to date. {type(error).__name__}: {error}\n"
                        "The same command goes on; what arrived is not sent again."
                    ) from error
    where = str(out.parent / "publish") if settings.to == "local" else f"https://huggingface.co/{settings.to}"
    files = listing(out)
    size = sum(facts["size"] for facts in files.values())
    return PublishFigures(where=where, files=len(files), bytes=size, commits=commits)


def lay_out(
    out: Path,
    settings: Publish,
    configuration: str,
    about: About,
    exports: Built[ConvertFigures],
    scores: Built[EvaluateFigures],
    model: Built[ExtendFigures],
    tokens: Built[CorpusFigures],
) -> list[Format]:
    """Fill `out` with a folder for each repository; returns their formats. What convert wrote is linked, and nothing
    else that lies beside it. Raises KodaError where that is not what convert wrote."""
    hub.refuse_links(exports.folder)  # before one is followed
    run = exports.folder.parent
    name = run.name
    record: dict[str, Any] = read_record(exports.folder) or {}
    if changed := changed_outputs(exports.folder):
        raise KodaError(f"{exports / changed[0]} is not what convert wrote: `koda run --name {name}` builds it again.")
    lineage = {
        "run": name,
        "configuration": public(configuration),
        "stages": {
            stage: json.loads(public(json.dumps({of: built[of] for of in ("key", "reads", "settings", "finished")})))
            for stage in STAGES[:-1]  # without publish itself: its own record would change it each time
            if (built := read_record(run / stage))
        },
        "tokenizer_sha256": read_json(tokens / "train/manifest.json")["tokenizer"],
        "corpus_shards": read_json(tokens / "train/manifest.json")["shards"],
        "versions": record["versions"],
    }
    written = {name: [path for path in record["outputs"] if path.startswith(f"{name}/")] for name in FORMATS}
    formats = [format_ for format_ in FORMATS.values() if written[format_.name]]
    for format_ in formats:
        folder = out / format_.name
        for path in written[format_.name]:
            link_file(exports / path, out / path)
        write_json(folder / "lineage.json", lineage)
        curve_picture(run, folder / "curve.png")
        where = "." if settings.to == "local" else repository(settings.to, format_)
        newer = "" if format_.suffix else settings.new_version
        texts = {"README.md": card(format_, name, where, about, exports, scores, model, tokens, newer)}
        if not format_.suffix:  # the model itself: the others were made of it
            texts |= eval_results(scores)
            for place, log in tensorboard(run):
                (folder / place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(log, folder / place)  # no link: a training that goes on writes to it
        for path, text in texts.items():
            with atomic_write(folder / path) as file:
                file.write(text)
        write_checksums(folder)
    return formats


def tensorboard(run: Path) -> Iterator[tuple[str, Path]]:
    """The event files of the run's trainings, each after its place in a repository, whose page then shows them; not
    those of earlier trainings. Their names there have the second, and not the machine."""
    for name in STAGES:
        if training := identify(run / name):
            folder = event_folder(training)
            files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
            begun = [(path, match[1]) for path in files if (match := EVENTS.fullmatch(path.name))]
            for number, (path, beginning) in enumerate(begun):
                place = Path("runs", name, path.relative_to(folder)).with_name(f"{beginning}.{number:05}")
                yield place.as_posix(), path


def public(settings: str) -> str:
    """Settings, as TOML or JSON, without the folders of this machine: of a path that begins with one, its last part.

    >>> public('{"/home/me/clients/text": 1, "~/more/text": 2, "notes/text": 1}')
    '{"text": 1, "text-2": 2, "notes/text": 1}'
    """
    names: dict[str, str] = {}

    def last(quoted: re.Match[str]) -> str:
        path = quoted[1]
        if path not in names:
            same = sum(Path(other).name == Path(path).name for other in names)
            names[path] = f"{Path(path).name}-{same + 1}" if same else Path(path).name
        return f'"{names[path]}"'

    return re.sub(r'"((?:/|~/|\.\.?/)[^"\n]*)"', last, settings)


def repository(to: str, format_: Format) -> str:
    """The name of a format's repository: USER/NAME, USER/NAME-GGUF, USER/NAME-MLX."""
    return to + format_.suffix


def would_change(name: str, configuration: str, settings: Publish, about: About) -> list[str]:
    """What publishing the run `name` would change, a line each; nothing is changed, and the layout is thrown away.

    `configuration` is what its run.toml would then be.
    """
    run = folder_of(name)
    built = {stage: read_built(run, stage) for stage in ("convert", "evaluate", "extend", "tokenize")}
    if missing := [stage for stage, result in built.items() if result is None]:
        raise KodaError(f"run {name!r} has no {missing[0]} yet: there is nothing to publish. `koda run` makes it.")
    for name_ in built:
        check_inputs(run, name_)
    if settings.to != "local":
        hub.check(settings.to)
    out = run / ".publish.would"
    shutil.rmtree(out, ignore_errors=True)
    try:
        exports, scores, model, tokens = built.values()
        formats = lay_out(out, settings, configuration, about, exports, scores, model, tokens)  # type: ignore[arg-type]
        lines: list[str] = []
        for format_ in FORMATS.values():
            if format_ in formats or (settings.to == "local" and (run / "publish" / format_.name).is_dir()):
                place, there, ours = _place(run, settings.to, format_)
                lines += hub.change_lines(place, hub.changes(out / format_.name, there, ours))
        return lines
    finally:
        shutil.rmtree(out, ignore_errors=True)


def _place(run: Path, to: str, format_: Format) -> tuple[str, dict[str, str], set[str]]:
    """Where a format is published, the files there with their hashes, and those to remove if they are not laid out."""
    if to == "local":  # the folder is replaced as a whole, whoever put a file there
        folder = run / "publish" / format_.name
        there = {path: facts["sha256"] for path, facts in listing(folder).items()}
        return str(folder), there, set(there)
    from huggingface_hub import HfApi

    place = repository(to, format_)
    with hub.refusals(place):
        return place, *hub.remote(HfApi(token=hub.token()), place)
