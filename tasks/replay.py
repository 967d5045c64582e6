"""Train some steps again from a checkpoint, and compare with the checkpoint at their end, bit by bit.

A checksum finds what a disk has changed. What a processor or its memory got wrong is in the checkpoint with a right
checksum; but a training that is deterministic gives the same bits again, and what does not was computed wrongly once.
"""

import contextlib
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from model.errors import KodaError
from model.files import COMMIT, committed_steps, link, read_json
from model.training.job import Job
from model.training.records import CHECKPOINTS, JOB, WINDOWS
from tasks.devices import platforms
from tasks.runs.lock import lock
from tasks.supervise import ProcessFailed, supervise

FOLDER = ".replay"


def span(training: Path, asked: str) -> tuple[int, int]:
    """The steps `A:B` of two checkpoints of a training; "": the two newest. Raises KodaError where one is not there."""
    kept = committed_steps(training / CHECKPOINTS)
    listed = f"{training / CHECKPOINTS} has those of {', '.join(f'{step}' for step in kept) or 'no step'}"
    if not asked:
        if len(kept) < 2:
            raise KodaError(f"a replay takes two checkpoints; {listed}.")
        return kept[-2], kept[-1]
    try:
        first, last = map(int, asked.split(":"))
    except ValueError:
        raise KodaError(f"--replay {asked}: two steps that have a checkpoint, as 1000:1500; {listed}.") from None
    if first >= last or not {first, last} <= set(kept):
        raise KodaError(f"--replay {asked}: an earlier and a later step that have a checkpoint; {listed}.")
    return first, last


def replay(training: Path, first: int, last: int) -> tuple[list[str], int]:
    """Train from the checkpoint at step `first` to step `last`; returns the names of the arrays, of weights and
    optimizer, that differ from the checkpoint there, and how many there are in all. The training is left as it is.

    Raises KodaError where it cannot be trained again, and where a process works on the run.
    """
    with lock(training.parent, f"runs/{training.parent.name}"):
        return _replay(training, first, last)


def _replay(training: Path, first: int, last: int) -> tuple[list[str], int]:
    job = Job.read(training / JOB)
    expected = _checksums(training / CHECKPOINTS / str(last))
    with _scratch(training) as folder:
        link(training / CHECKPOINTS / str(first), folder / CHECKPOINTS / str(first))
        if (training / WINDOWS).is_file():
            shutil.copy(training / WINDOWS, folder)
        recipe = replace(
            job.recipe, snapshots=0, replay_every_minutes=0.0, save_share=0.0, save_every_steps=job.recipe.steps
        )
        replace(job, folder=str(folder), recipe=recipe, second_place="").write(folder / JOB)
        command = [sys.executable, "-m", "model.training", str(folder / JOB), str(last)]
        try:
            supervise(command, folder / "training.log", folder=folder, peers=[platforms()])
        except ProcessFailed as failure:
            raise KodaError(f"the replay {failure.how}: {failure.last_line}") from failure
        if (folder / CHECKPOINTS / f"{first}.corrupt").exists():  # and it began at step 0
            raise KodaError(f"{training / CHECKPOINTS / str(first)} is corrupt: nothing can be replayed from it.")
        got = _checksums(folder / CHECKPOINTS / str(last))
    return sorted(name for name in expected | got if expected.get(name) != got.get(name)), len(expected)


@contextlib.contextmanager
def _scratch(training: Path) -> Iterator[Path]:
    folder = training.parent / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    (folder / CHECKPOINTS).mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _checksums(checkpoint: Path) -> dict[str, int]:
    return {name: array["crc32"] for name, array in read_json(checkpoint / COMMIT)["arrays"].items()}
