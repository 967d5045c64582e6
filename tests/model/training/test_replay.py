"""Steps that are computed again find what was computed wrong, and undo it."""

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from model import arrays
from model.training.job import Job
from model.training.program import Program
from model.training.records import EVENTS, Event, EventRecord, log_event, read_events
from model.training.replay import FOUND, Replay, fingerprint
from model.training.training import Training

SAVED, STEP = 3, 7
FLIPPED = "params/layers/attention/query/kernel"


@pytest.fixture(scope="module")
def program(job: Job) -> Program:
    """Compiled once."""
    return Program(job)


@pytest.fixture
def training(job: Job, program: Program, tmp_path: Path) -> Iterator[Training]:
    """At step STEP, with a checkpoint of step SAVED."""
    training = Training(replace(job, folder=str(tmp_path / "training")))
    training.program = program
    with jax.set_mesh(training.mesh):
        training.resume()
        for step in range(STEP):
            training.advance(training.batch(step))
            if step + 1 == SAVED:
                training.save(SAVED, permanent=False)
        training.wait_for_writes()
        yield training


def flip(training: Training, bit: int = 9) -> None:
    """Change one bit of one weight."""
    kernel = training.state.params["layers"]["attention"]["query"]["kernel"]
    raw = np.array(kernel)
    raw.view(np.uint32).flat[raw.size // 2] ^= np.uint32(1 << bit)
    training.state.params["layers"]["attention"]["query"]["kernel"] = jax.device_put(raw, kernel.sharding)


def bits(training: Training) -> dict[str, int]:
    return {name: int(value) for name, value in jax.jit(fingerprint)(training.state).items()}


def found(training: Training) -> list[EventRecord]:
    return [r for r in read_events(training.folder) if r.event in FOUND]


def last_of(act: Callable[[], None]) -> Callable[[str, int], None]:
    """A beat that acts before the last step of each replay."""
    beats = itertools.count(1)
    return lambda phase, step: act() if phase == "replay" and next(beats) % (STEP - SAVED) == 0 else None


def test_steps_that_were_right_are_the_same_again(training: Training) -> None:
    before = bits(training)
    Replay(training)(lambda phase, step: None)
    assert bits(training) == before and training.step == STEP
    assert [(r.event, r.step, r.details["since"]) for r in found(training)] == [(Event.REPLAY, STEP, SAVED)]


@pytest.mark.parametrize("bit", [0, 31])
def test_a_flipped_bit_is_found_and_undone(training: Training, bit: int) -> None:
    before = bits(training)
    flip(training, bit)
    assert [name for name, value in bits(training).items() if value != before[name]] == [FLIPPED]
    Replay(training)(lambda phase, step: None)
    assert bits(training) == before
    (record,) = found(training)
    assert record.event is Event.WRONG_BITS and record.details["arrays"] == [FLIPPED]
    assert "came out twice" in record.cause and FLIPPED in record.cause


def test_a_replay_that_goes_wrong_itself_changes_nothing(training: Training) -> None:
    before, replays = bits(training), iter([lambda: flip(training), lambda: None])
    Replay(training)(last_of(lambda: next(replays)()))
    assert bits(training) == before
    (record,) = found(training)
    assert "a third time they have the first ones" in record.cause and len(record.details["arrays"]) > 1


def test_replays_end_where_nothing_comes_out_twice(training: Training) -> None:
    flip(training)
    other = iter([8, 7])
    replay = Replay(training)
    replay(last_of(lambda: flip(training, next(other))))
    assert not replay.works and not replay.due()
    (record,) = found(training)
    assert record.event is Event.WRONG_BITS and "does not compute the same" in record.cause


def test_without_a_checkpoint_nothing_is_compared(job: Job, program: Program, tmp_path: Path) -> None:
    training = Training(replace(job, folder=str(tmp_path / "new")))
    training.program = program
    with jax.set_mesh(training.mesh):
        training.resume()
        training.advance(training.batch(0))
        Replay(training)(lambda phase, step: None)
        assert training.step == 1
    assert not found(training)


def test_corrupt_checkpoint_costs_the_comparison_and_nothing_else(training: Training) -> None:
    before = bits(training)
    files = [p for p in (training.folder / f"checkpoints/{SAVED}").rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    Replay(training)(lambda phase, step: None)
    assert bits(training) == before and not found(training)


def test_stop_leaves_the_training_at_a_step_that_can_be_saved(training: Training) -> None:
    flip(training)
    asked = iter([False, False, True])
    Replay(training)(lambda phase, step: None, lambda: next(asked))
    assert training.step == SAVED + 2 and not found(training)


def test_next_replay_is_due_after_the_last_one_of_whatever_attempt(training: Training) -> None:
    training.recipe = replace(training.recipe, replay_every_minutes=1.0)
    assert not Replay(training).due()
    log_event(training.folder, Event.RESUME, STEP)
    events = (training.folder / EVENTS).read_text().splitlines()
    old = [json.dumps({**json.loads(line), "time": time.time() - 90}) + "\n" for line in events[:1]]
    (training.folder / EVENTS).write_text("".join(old + [f"{line}\n" for line in events[1:]]))
    replay = Replay(training)
    assert replay.due()  # the first attempt began long ago
    replay(lambda phase, step: None)
    assert not replay.due() and not Replay(training).due()


def test_training_that_replays_has_the_bits_of_one_that_does_not(job: Job, tmp_path: Path) -> None:
    """The whole loop, in a process of its own, with a replay at each save that is not the last."""
    recipe = replace(job.recipe, save_every_steps=4, steps=12, snapshots=0)
    ends = []
    for name, minutes in (("with", 1e-9), ("without", 0.0)):
        own = replace(job, folder=str(tmp_path / name), recipe=replace(recipe, replay_every_minutes=minutes))
        (tmp_path / name).mkdir()
        own.write(tmp_path / name / "job.json")
        subprocess.run([sys.executable, "-m", "model.training", str(tmp_path / name / "job.json"), "12"], check=True)
        ends.append(arrays.facts(tmp_path / name / "checkpoints/12")["arrays"])
    assert ends[0] == ends[1]
    replayed = [(r.event, r.step) for r in read_events(tmp_path / "with") if r.event in FOUND]
    assert replayed == [(Event.REPLAY, 8)]
