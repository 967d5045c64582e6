"""A run: one folder that holds everything it makes, and the rule by which a stage is skipped or built."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from model.errors import KodaError
from model.files import disk_full, finished, hold, listing, read_json, replace_folder, write_json
from model.training.protocol import append, die_with_parent, lines
from tasks.progress import say
from tasks.section import Section

STAGES = ("tokenize", "pretrain", "checkpoint", "sft", "extend", "convert", "evaluate", "publish")
RECORD = "stage.json"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"  # of a run
LIVES = "lives.jsonl"  # when a process began to work on the run and when it ended, and how far the run was
WITHOUT_PROGRESS = 3  # lives that end at the same place before it is given up
FILES = "KODA_FILES_URL"  # where the folder of all runs is served; `koda up` serves it, and says where
WORKER = "PREFECT__WORKER_NAME"  # in the environment of a run that a worker has started
PACKAGES = ("koda", "jax", "flax", "optax", "orbax-checkpoint", "tokenizers", "transformers", "gguf", "mlx", "mlx-lm")


class Reached(Exception):
    """The stage that the run was asked to end with is done."""


@dataclass(frozen=True)
class Built:
    """A finished stage, as the stages after it see it: small, and never an array."""

    stage: str
    folder: Path
    key: str
    figures: dict[str, Any] = field(default_factory=dict)
    finished: str = ""  # when, as its record says

    def __truediv__(self, path: str) -> Path:
        """A file of the stage: `tokens / "tokenizer.json"`."""
        return self.folder / path


class Run:
    """The folder `runs/<name>`, held by one process at a time while the `with` block lasts."""

    def __init__(self, name: str, *, start: str = "", until: str = "", config_text: str = ""):
        """`start`: build this stage and those after it anew, and take the ones before it as they stand.

        `until`: raise Reached once this stage is done.
        """
        for stage in filter(None, (start, until)):
            if stage not in STAGES:
                raise KodaError(f"no stage is called {stage!r}; the stages are {', '.join(STAGES)}.")
        self.name, self.folder = name, folder_of(name)
        self.start, self.until = start, until
        self._config_text = config_text
        self._stood = ""  # what run.toml was before
        self._lock: IO[str] | None = None

    def __enter__(self) -> "Run":
        if WORKER in os.environ:
            die_with_parent()  # without its worker nobody could cancel it; it saves, and is started again by the next
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o750)
        self._lock = lock(self.folder, f"runs/{self.name}")
        self._spend()
        path = self.folder / "run.toml"
        self._stood = path.read_text(encoding="utf-8") if path.is_file() else ""
        for line in self._changes():
            say(line)
        self._configure(self._config_text)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.start == STAGES[-1] and kind is not None:  # else the next `koda run` would upload to where this failed
            self._configure(self._stood)
        append(self.folder / LIVES, {"time": time.time(), "event": "end"})
        if self._lock:
            self._lock.close()

    def _configure(self, text: str) -> None:
        if text:
            with finished(self.folder / "run.toml") as file:
                file.write(text)

    def _spend(self) -> None:
        """Count the lives of this run whose process died without having got further than the one before.

        An automation starts a crashed run again; this is what keeps it from doing so for ever. KodaError ends the run
        as failed, and whoever then starts it has a new budget.
        """
        reached = [stage for stage in STAGES if (self.folder / stage / RECORD).is_file()]
        reached += sorted(p.parent.name for p in self.folder.glob("*/checkpoints/*/COMMIT.json"))
        reached += sorted(p.name for p in self.folder.glob("tokenize/.blocks/*/*.json"))
        died = 0
        for life in reversed(lines(self.folder / LIVES)):
            if life["event"] == "end" or life["reached"] != reached:
                break
            died += 1
        if died >= WITHOUT_PROGRESS:
            append(self.folder / LIVES, {"time": time.time(), "event": "end"})
            raise KodaError(
                f"the process of runs/{self.name} died {died} times without getting further. What was built stands; "
                "the same command tries again."
            )
        begun = {"time": time.time(), "event": "begin", "flow_run": _flow_run(), "reached": reached}
        append(self.folder / LIVES, begun)

    def _changes(self) -> list[str]:
        """What this command sets otherwise than the one before it on this run."""
        if not self._stood or not self._config_text:
            return []
        old, new = (flat(tomllib.loads(text)) for text in (self._stood, self._config_text))
        changed = (key for key in new if old.get(key) != new[key])
        return [f"changed    {key} = {new[key]!r}, was {old.get(key, 'not set')!r}" for key in changed]

    def key(self, stage: str, version: int, inputs: tuple[Any, ...]) -> str:
        """What decides a stage's result: its settings, the keys of the stages it reads, the version of its code."""
        parts = [i.key if isinstance(i, Built) else i.decisive() if isinstance(i, Section) else i for i in inputs]
        return hashlib.sha256(json.dumps([stage, version, parts], sort_keys=True).encode()).hexdigest()

    def standing(self, stage: str, key: str, inputs: tuple[Any, ...] = ()) -> Built | None:
        """The stage's result if it is to be taken as it is: the right key, every file whole, and made of these inputs,
        which may have been built anew since."""
        if self.start and STAGES.index(stage) < STAGES.index(self.start):
            built = read_built(self.folder, stage)
            if built is None:
                raise KodaError(f"--from {self.start} takes {stage} as it stands, but runs/{self.name} has none yet.")
            return built
        if self.start:
            return None
        built = read_built(self.folder, stage)
        if built is None or built.key != key or not whole(built.folder):
            return None
        of = read_json(built / RECORD).get("built_from", {})
        return built if all(of.get(i.stage, i.finished) == i.finished for i in inputs if isinstance(i, Built)) else None

    def build(
        self, stage: str, key: str, resumes: bool, body: Callable[[Path], dict[str, Any]], inputs: tuple[Any, ...] = ()
    ) -> Built:
        """Let `body` fill a folder, record what it made and of what, and put the folder in its place.

        A stage that `resumes` works in its own place, so that a later life finds what an earlier one left; what
        stands there under another key is set aside, not removed.
        """
        place = self.folder / stage
        work = place if resumes else self.folder / f".{stage}.building"
        if resumes:
            self._make_room(place, key)
        else:
            shutil.rmtree(work, ignore_errors=True)
        work.mkdir(exist_ok=True)
        began = time.time()
        try:
            figures = body(work)
        except Exception as error:
            if not disk_full(error):
                raise
            free = shutil.disk_usage(self.folder).free / 1e6
            raise KodaError(
                f"the disk is full: {stage} could not write all of {work} ({free:,.0f} MB are free there). "
                "Nothing that stood before is lost; make room, and the same command goes on."
            ) from error
        ended = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        record = {
            "stage": stage,
            "key": key,
            "seconds": round(time.time() - began, 2),
            "finished": ended,
            "figures": figures,
            "settings": {type(i).__name__.lower(): i.model_dump(mode="json") for i in inputs if isinstance(i, Section)},
            "reads": {i.stage: i.key for i in inputs if isinstance(i, Built)},
            "built_from": {i.stage: i.finished for i in inputs if isinstance(i, Built)},
            "versions": versions(),
            "outputs": {
                path: facts
                for path, facts in listing(work).items()
                if path not in (RECORD, "building.json") and not Path(path).name.startswith(".")
            },
        }
        write_json(work / RECORD, record)
        if not resumes:
            replace_folder(work, place)
        return Built(stage, place, key, figures, ended)

    def _make_room(self, place: Path, key: str) -> None:
        marker = place / "building.json"
        anew = bool(self.start) and (place / RECORD).is_file()
        if marker.is_file() and read_json(marker)["key"] == key and not anew:
            return
        if place.exists():
            old = read_json(marker)["key"][:8] if marker.is_file() else "unknown"
            aside = place.with_name(f"{place.name}.{old}")
            for number in range(2, 1000):
                if not aside.exists():
                    break
                aside = place.with_name(f"{place.name}.{old}-{number}")
            place.rename(aside)
        place.mkdir()
        write_json(marker, {"key": key})


def lock(folder: Path, what: str) -> IO[str]:
    """Hold a folder for the flow run that goes on here (`flows/check.py` finds it by that)."""
    known_as = f"flow run {number}" if (number := _flow_run()) else ""
    return hold(folder / ".lock", what, known_as=known_as)  # a second's patience: `koda status` looks too


def _flow_run() -> str:
    """The ID of Prefect's run that this process is; empty outside of any."""
    from prefect.runtime import flow_run  # here, so that `koda status` starts in a moment

    return flow_run.id or ""


def flat(nested: dict[str, Any]) -> dict[str, Any]:
    """`{"pretrain": {"steps": 7}}` → `{"pretrain.steps": 7}`."""
    found = {}
    for section, value in nested.items():
        found.update({f"{section}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {section: value})
    return found


def root() -> Path:
    """Where runs lie: `runs` in the current folder, or what KODA_RUNS says."""
    return Path(os.environ.get("KODA_RUNS", "runs"))


def address(path: Path) -> str:
    """Where a browser finds a file of a run; empty where nobody serves it."""
    served = os.environ.get(FILES, "")
    return f"{served}/{path.absolute().relative_to(root().absolute()).as_posix()}" if served else ""


def folder_of(name: str) -> Path:
    """The folder of a run. Raises KodaError for a name that would lie anywhere else."""
    if not re.fullmatch(NAME, name):
        raise KodaError(
            f"--name {name!r} cannot be a run's name: letters, digits, '.', '_' and '-', up to 64, "
            "beginning with a letter or digit."
        )
    return root() / name


def existing(name: str) -> Path:
    """The folder of a run that has begun. Raises KodaError where there is none."""
    folder = folder_of(name)
    if not (folder / "run.toml").is_file():
        raise KodaError(f"there is no run {name!r}: {folder} does not exist. `koda run --name {name}` makes it.")
    return folder


def read_built(run_folder: Path, stage: str) -> Built | None:
    """The finished stage in a run's folder, or None."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        record = read_json(run_folder / stage / RECORD)
        return Built(stage, run_folder / stage, record["key"], record["figures"], record["finished"])
    return None


def whole(folder: Path) -> bool:
    """Are all outputs that a stage recorded there, with the bytes that it recorded?"""
    outputs = read_json(folder / RECORD)["outputs"]
    there = listing(folder)
    return all(there.get(path) == facts for path, facts in outputs.items())


def versions() -> dict[str, str]:
    """The interpreter and the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
