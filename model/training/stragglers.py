"""Which process of a training is slow. At each step all wait for it, so that the time of a step does not tell."""

import socket
import time
from collections.abc import Callable
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from model.training.records import Event

SLOW = 1.5  # times the fastest process's time
IN_A_ROW = 2  # comparisons, before it is noted
WIDTH, PRODUCTS, TURNS = 512, 16, 5
NAME = 64  # bytes of a host's name


class Stragglers:
    """Has each process compute the same small products alone, and compares their times."""

    def __init__(self, note: Callable[..., None]):
        """`note(event, step, …)` logs what is found. To be made outside of any mesh: the products are of one device."""
        self.note = note
        self._matrix = jax.device_put(np.eye(WIDTH, dtype=np.float32), jax.local_devices()[0])
        self._products = jax.jit(_products).lower(self._matrix).compile()
        self._slow_for: dict[int, int] = {}  # comparisons in a row, by process
        self._waited = 0.0

    def compare(self, step: int, waited: float) -> None:
        """`waited`: seconds so far that this process's devices had to wait for its data. Every process must call it at
        the same step."""
        mine = np.array([self._seconds(), waited - self._waited])
        self._waited = waited
        name = np.frombuffer(socket.gethostname().encode()[:NAME].ljust(NAME), np.uint8)
        times_P2, names_PN = multihost_utils.process_allgather((mine, name))
        for number, cause in slow(times_P2).items():
            self._slow_for[number] = self._slow_for.get(number, 0) + 1 if cause else 0
            if self._slow_for[number] == IN_A_ROW:
                host = bytes(names_PN[number]).decode(errors="replace").strip()
                self.note(Event.STRAGGLER, step, cause=f"process {number} on {host} {cause}")

    def _seconds(self) -> float:
        times = []
        for _ in range(TURNS):
            began = time.perf_counter()
            self._products(self._matrix).block_until_ready()
            times.append(time.perf_counter() - began)
        return median(times)


def slow(times_P2: np.ndarray) -> dict[int, str]:
    """What makes each process slower than the others, if anything, by the seconds that its products took and that it
    waited for data."""
    fastest, least = times_P2.min(0)
    causes = {}
    for number, (products, waited) in enumerate(times_P2):
        causes[number] = ""
        if products > SLOW * fastest:
            causes[number] = f"computes {products / fastest:.1f} times as slowly as the fastest"
        elif waited > SLOW * least + 1:
            causes[number] = f"waited {waited:.0f} s for its data, another one {least:.0f} s"
    return causes


def _products(matrix: jax.Array) -> jax.Array:
    return jax.lax.fori_loop(0, PRODUCTS, lambda _, product: jnp.dot(product, matrix), matrix)
