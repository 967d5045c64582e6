"""One training in several processes, on one host or many: who writes, and what all must decide alike.

Each process of a training runs `python -m model.training` with the same job. JAX joins them (`jax.distributed`) where
the environment has JAX_COORDINATOR_ADDRESS=host:port; how many they are, and which one this is, it knows from Slurm,
Open MPI or Kubernetes, or else from JAX_NUM_PROCESSES and JAX_PROCESS_ID.
"""

import os
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from model.errors import KodaError

ADDRESS, COUNT, NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def initialize() -> None:
    """Join the training's other processes, where there are any. Raises KodaError where they cannot be reached."""
    if ADDRESS not in os.environ:
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    numbers = {name: int(os.environ[name]) if name in os.environ else None for name in (COUNT, NUMBER)}
    try:
        jax.distributed.initialize(num_processes=numbers[COUNT], process_id=numbers[NUMBER])
    except (RuntimeError, ValueError) as error:
        raise KodaError(
            f"could not join the other processes of this training at {ADDRESS} = {os.environ[ADDRESS]} "
            f"({str(error).splitlines()[0]}); {COUNT} and {NUMBER} set how many there are and which this one is."
        ) from error


def check_devices() -> None:
    """Raises KodaError where JAX is to use GPUs (JAX_PLATFORMS) and does not: of two platforms it takes the second
    without a word where the first is not installed."""
    try:
        asked = "cuda" in os.environ.get("JAX_PLATFORMS", "").split(",")
        missing = "JAX came up without CUDA" if asked and jax.default_backend() == "cpu" else ""
    except RuntimeError as error:
        missing = str(error).splitlines()[0]
    if missing:
        raise KodaError(
            f"the GPUs of this machine cannot be used ({missing}).\n"
            "CUDA 13 (pip install 'koda[cuda]') needs a driver of version 580 or newer, CUDA 12 ('koda[cuda12]') one "
            "of 525 or newer; `nvidia-smi` shows the driver's. JAX_PLATFORMS=cpu trains on the processor."
        )


def is_single() -> bool:
    return jax.process_count() == 1


def is_writer() -> bool:
    """Is this the process that writes checkpoints, metrics and events?"""
    return jax.process_index() == 0


def broadcast_from_writer(value: int) -> int:
    """What the writing process thinks, for all of them: a clock or a disk must not part their ways."""
    return value if is_single() else int(multihost_utils.broadcast_one_to_all(np.int64(value)))


def should_stop(step: int, requested: bool) -> bool:
    """Should this step be the last one? Several processes stop at one step, whichever of them got the SIGTERM."""
    return requested if is_single() else multihost_utils.reached_preemption_sync_point(step)


def device_memory() -> int | None:
    """Bytes that JAX may use of each device of this process; None for a CPU, whose memory is the machine's."""
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
    return min(filter(None, limits), default=None)


def copy_to_host(leaf: Any) -> np.ndarray | jax.Array:
    """A copy of an array in this process's memory, also where its parts lie with other processes; the next step, with
    donated buffers, writes over the array itself.

    A GPU's copy of an array that it has whole is under way when this returns, into memory that stays pinned:
    `np.asarray` waits for it. What is spread over several is gathered at once.
    """
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return np.array(multihost_utils.process_allgather(leaf, tiled=True))
    if not isinstance(leaf, jax.Array) or jax.default_backend() == "cpu":
        return np.array(leaf)
    if not leaf.is_fully_replicated:
        return np.asarray(leaf)
    one = leaf.addressable_data(0)  # of several cards one is enough
    return jax.device_put(one, one.sharding.with_memory_kind("pinned_host"))


def copies_for_writer(named: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, np.ndarray | jax.Array]]:
    """Each array with its name, copied to the writing process. Every process must go through all of them; the others
    get none."""
    for name, leaf in named:
        copy = copy_to_host(leaf)
        if is_writer():
            yield name, copy
