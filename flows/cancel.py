"""A run that is to be cancelled ends as cancelled, with a worker or without.

Prefect's worker listens for a run's cancel. It stops after some 40 s without a server, and a worker that is killed
sends its runs only SIGTERM, which alone is a crash, and crashed runs are restarted. So the run itself looks too.
"""

import contextlib
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

EVERY = 10.0  # seconds between two looks; the worker, if it listens, has ended the run before the second


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
                if _to_be_cancelled(number):
                    return Cancelled(message="It saved, and ended.")
                raise

    return wrapped


@contextlib.contextmanager
def _watched(number: str | None) -> Iterator[None]:
    """While the block lasts, look whether the run is to be cancelled; if it still is at the next look, SIGTERM.

    It sends none where one came from elsewhere: that would interrupt the save.
    """
    done = threading.Event()
    previous: Any = signal.getsignal(signal.SIGTERM)

    def on_sigterm(*arguments: Any) -> None:
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
        done.set()
        signal.signal(signal.SIGTERM, previous)


def _to_be_cancelled(number: str | None) -> bool:
    """The state that the server has now; no answer counts as no."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    with (
        contextlib.suppress(Exception),
        temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
        get_client(sync_client=True, httpx_settings={"timeout": 5.0}) as client,
    ):
        state = client.read_flow_run(UUID(str(number))).state
        return state is not None and (state.is_cancelling() or state.is_cancelled())
    return False
