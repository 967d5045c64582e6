"""A run: one folder that holds everything it makes, locked by one process at a time."""

import os
import shutil
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

from model.errors import KodaError
from model.files import atomic_write, check_unlocked, disk_full, listing, read_json, replace_folder, write_json
from model.parent import die_with_parent
from model.training.records import SNAPSHOTS
from tasks.progress import log_line
from tasks.runs.attempts import Attempts
from tasks.runs.lock import LOCK, flow_run_id, lock
from tasks.runs.paths import RUN_TOML, STAGES, folder_of, make_folder, read_configuration
from tasks.runs.record import RECORD, Built, read_built, read_record, versions
from tasks.runs.up_to_date import check_inputs, up_to_date
from tasks.section import Section, nearest

ATTEMPTS = "attempts.jsonl"
WORKER = "PREFECT__WORKER_NAME"  # in the environment of a run that a worker has started
ORPHAN_SECONDS = 90.0  # that a run whose worker died may take to save and end; what it started saves by itself
BUILDING = "building.json"  # the key that a stage which resumes is being built under


Figures = TypeVar("Figures")


class Reached(Exception):
    """The stage that the run was to end with is done."""


class Run:
    """The folder `runs/<name>`, locked by this process while the `with` block lasts."""

    def __init__(self, name: str, *, start: str = "", until: str = "", config_text: str = ""):
        """`start`: rebuild this stage and those after it, and take the ones before it as they are.

        `until`: raise Reached once this stage is done. `config_text`: run.toml from now on.
        """
        for stage in filter(None, (start, until)):
            if stage not in STAGES:
                raise KodaError(f"no stage is called {stage!r}; the stages are {', '.join(STAGES)}.")
        self.name, self.folder = name, folder_of(name)
        self.start, self.until = start, until
        self.attempts = Attempts(self.folder / ATTEMPTS)
        self._config_text = config_text
        self._previous_config = ""
        self._began_at: list[str] = []  # the progress that this attempt began with
        self._built = False  # a stage, by this attempt: one that was rebuilt is no progress
        self._lock: IO[str] | None = None

    def check(self) -> None:
        """Raise KodaError for what would end this run once it has begun, as far as its folder shows."""
        check_unlocked(self.folder / LOCK, f"runs/{self.name}")
        for stage in STAGES:
            read_record(self.folder / stage)
            if self.start and STAGES.index(stage) < STAGES.index(self.start):
                self._earlier_result(stage)

    def __enter__(self) -> "Run":
        if WORKER in os.environ:
            # Without its worker nobody could cancel it; it saves, and the next worker restarts it.
            die_with_parent(ORPHAN_SECONDS)
        make_folder(self.folder, 0o750)
        self._lock = lock(self.folder, f"runs/{self.name}")
        path = self.folder / RUN_TOML
        self._previous_config = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        changes = self._changes()  # refuses a damaged one
        self._began_at = self.progress()
        give_up = (
            f"the process of runs/{self.name} died {{died}} times without getting further. What was built is kept; "
            "the same command tries again."
        )
        self.attempts.begin(self._began_at, give_up, flow_run=flow_run_id())
        for line in changes:
            log_line(line)
        self._configure(self._config_text)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Settings of a command that was refused would fail the next one too, or upload to where this one could not.
        if kind is KodaError and not self._built and self.progress() == self._began_at:
            self._configure(self._previous_config)
            if not self._previous_config:
                (self.folder / RUN_TOML).unlink(missing_ok=True)
        self.attempts.end()
        if self._lock:
            self._lock.close()

    def progress(self) -> list[str]:
        """What is done so far: stages, committed checkpoints, sizes of a ladder, and blocks of tokens."""
        done = [stage for stage in STAGES if (self.folder / stage / RECORD).is_file()]
        done += sorted(p.parent.name for p in self.folder.glob("*/checkpoints/*/COMMIT.json"))
        done += sorted(
            str(p) for kind in ("*.json", "*/checkpoints/*/COMMIT.json") for p in self.folder.glob(f"ladder/{kind}")
        )
        done += sorted(p.name for p in self.folder.glob("tokenize/.blocks/*/*.json"))
        return done

    def _configure(self, text: str) -> None:
        if text:
            with atomic_write(self.folder / RUN_TOML) as file:
                file.write(text)

    def _changes(self) -> list[str]:
        """The settings that this command changes in the run, and those that it leaves out as unknown, a line each."""
        if not self._previous_config or not self._config_text:
            return []
        old, new = flat(read_configuration(self.folder)), flat(tomllib.loads(self._config_text))
        changed = (key for key in new if old.get(key) != new[key])
        lines = [f"changed    {key} = {new[key]!r}, was {old.get(key, 'not set')!r}" for key in changed]
        return lines + [f"left out   {key} is no setting{nearest(key, new)}" for key in old if key not in new]

    def existing_result(self, stage: str, key: str, inputs: tuple[Any, ...] = ()) -> Built[Any] | None:
        """The stage's result if it is to be taken as it is: it is up to date, or before the stage to start from."""
        if self.start and STAGES.index(stage) < STAGES.index(self.start):
            return self._earlier_result(stage)
        return None if self.start else up_to_date(self.folder, stage, key, inputs)

    def _earlier_result(self, stage: str) -> Built[Any]:
        """The result of a stage before the one to start from.

        Raises KodaError where there is none, and for one that was built from a result that was rebuilt since.
        """
        built = read_built(self.folder, stage)
        if built is None:
            raise KodaError(f"--from {self.start} needs the result of {stage}, and runs/{self.name} has none yet.")
        check_inputs(self.folder, stage)
        return built

    def build(
        self, stage: str, key: str, resumes: bool, body: Callable[[Path], Figures], inputs: tuple[Any, ...] = ()
    ) -> Built[Figures]:
        """Let `body` fill a folder, record what it made and of what, and put the folder in its place.

        A stage that `resumes` works in its own place, so that a later attempt finds what an earlier one left; what
        lies there under another key is set aside, not removed.
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
                "Nothing that was there before is lost; make room, and the same command goes on."
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
                for path, facts in listing(work, SNAPSHOTS).items()
                if path not in (RECORD, BUILDING) and not Path(path).name.startswith(".")
            },
        }
        write_json(work / RECORD, record)
        if not resumes:
            replace_folder(work, place)
        self._built = True
        return Built(stage, place, key, figures, ended)

    def _make_room(self, place: Path, key: str) -> None:
        marker = place / BUILDING
        rebuild = bool(self.start) and (place / RECORD).is_file()
        if marker.is_file() and read_json(marker)["key"] == key and not rebuild:
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


def flat(nested: dict[str, Any]) -> dict[str, Any]:
    """`{"pretrain": {"steps": 7}}` → `{"pretrain.steps": 7}`."""
    flattened = {}
    for section, value in nested.items():
        keys = {f"{section}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else None
        flattened.update({section: value} if keys is None else keys)
    return flattened
