"""Steps that are computed again find what was computed wrong, and undo it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from model.training.job import Job
from model.training.program import Program
from model.training.records import Event, EventRecord, read_events
from model.training.replay import Replay, fingerprint
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
    return [r for r in read_events(training.folder) if r.event in (Event.REPLAY, Event.WRONG_BITS)]


def at(step: int, act: Callable[[], None]) -> Callable[[str, int], None]:
    """A beat that acts once before each replay of this step."""
    return lambda phase, beaten: act() if (phase, beaten) == ("replay", step) else None


def test_steps_that_were_right_are_the_same_again(training: Training) -> None:
    before = bits(training)
    assert Replay(training)(lambda phase, step: None)
    assert bits(training) == before and training.step == STEP
    assert [(r.event, r.step, r.details["since"]) for r in found(training)] == [(Event.REPLAY, STEP, SAVED)]


@pytest.mark.parametrize("bit", [0, 31])
def test_a_flipped_bit_is_found_and_undone(training: Training, bit: int) -> None:
    before = bits(training)
    flip(training, bit)
    assert [name for name, value in bits(training).items() if value != before[name]] == [FLIPPED]
    assert Replay(training)(lambda phase, step: None)
    assert bits(training) == before
    (record,) = found(training)
    assert record.event is Event.WRONG_BITS and record.details["arrays"] == [FLIPPED]
    assert "came out twice" in record.cause and FLIPPED in record.cause


def test_a_replay_that_goes_wrong_itself_changes_nothing(training: Training) -> None:
    before, replays = bits(training), iter([lambda: flip(training), lambda: None])
    assert Replay(training)(at(STEP - 1, lambda: next(replays)()))
    assert bits(training) == before
    (record,) = found(training)
    assert "a third time they have the first ones" in record.cause and len(record.details["arrays"]) > 1


def test_replays_end_where_nothing_comes_out_twice(training: Training) -> None:
    flip(training)
    other = iter([8, 7])
    assert not Replay(training)(at(STEP - 1, lambda: flip(training, next(other))))
    (record,) = found(training)
    assert record.event is Event.WRONG_BITS and "does not compute the same" in record.cause


def test_without_a_checkpoint_nothing_is_compared(job: Job, program: Program, tmp_path: Path) -> None:
    training = Training(replace(job, folder=str(tmp_path / "new")))
    training.program = program
    with jax.set_mesh(training.mesh):
        training.resume()
        training.advance(training.batch(0))
        assert Replay(training)(lambda phase, step: None) and training.step == 1
    assert not found(training)


def test_corrupt_checkpoint_costs_the_comparison_and_nothing_else(training: Training) -> None:
    before = bits(training)
    files = [p for p in (training.folder / f"checkpoints/{SAVED}").rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    assert Replay(training)(lambda phase, step: None)
    assert bits(training) == before and not found(training)
