"""A run that is to be cancelled ends as cancelled, with a worker or without.

Prefect's worker listens for a run's cancel. It stops after some 40 s without a server, and a worker that is killed
sends its runs only SIGTERM, which alone is a crash, and crashed runs are restarted. So the run itself looks too.
"""

import contextlib
import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

EVERY = 10.0  # seconds between two looks; the worker, if it listens, has ended the run before the second
PATIENCE = 10.0  # seconds that a run which is ending waits for a server that is busy; after 30 the worker kills it


def cancellable(function: Callable[..., Any]) -> Callable[..., Any]:
    """A flow's function that ends by itself once its run is to be cancelled, and then returns Prefect's Cancelled."""

    @functools.wraps(function)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        from prefect.exceptions import TerminationSignal
        from prefect.runtime import flow_run
        from prefect.settings import PREFECT_API_URL
        from prefect.states import Cancelled

        if PREFECT_API_URL.value() is None:
            return function(*arguments, **named)  # the run has a server of its own, where nothing is cancelled
        number = flow_run.id
        with _watched(number):
            try:
                return function(*arguments, **named)
            except TerminationSignal:
                if _to_be_cancelled(number, PATIENCE):
                    return Cancelled(message="It saved, and ended.")
                raise

    return wrapped


@contextlib.contextmanager
def _watched(number: str | None) -> Iterator[None]:
    """While the block lasts, look whether the run is to be cancelled; if it still is at the next look, SIGTERM.

    Only the first SIGTERM ends the run, wherever it comes from, and the others are ignored until its process is gone:
    one from the worker and one because the worker died would interrupt the save, or what tells the server how it ended.
    """
    done = threading.Event()
    previous: Any = signal.getsignal(signal.SIGTERM)

    def on_sigterm(*arguments: Any) -> None:
        if not done.is_set():
            done.set()
            previous(*arguments)

    def watch() -> None:
        looks = 0
        while not done.wait(EVERY):
            looks = looks + 1 if _to_be_cancelled(number) else 0
            if looks == 2:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    signal.signal(signal.SIGTERM, on_sigterm)
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        if not done.is_set():
            done.set()
            signal.signal(signal.SIGTERM, previous)


def _to_be_cancelled(number: str | None, patience: float = 0.0) -> bool:
    """The state that the server has now; no answer within so many seconds counts as no."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    deadline = time.monotonic() + patience
    while True:
        with (
            contextlib.suppress(Exception),
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
            get_client(sync_client=True, httpx_settings={"timeout": 5.0}) as client,
        ):
            state = client.read_flow_run(UUID(str(number))).state
            return state is not None and (state.is_cancelling() or state.is_cancelled())
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.5)
