"""How often, and after how long, Prefect retries the tasks of Koda."""

from typing import Any

from prefect.cache_policies import NO_CACHE
from prefect.states import State
from prefect.tasks import exponential_backoff

from model.errors import KodaError


def worth_retrying(_task: Any, _run: Any, state: State) -> bool:
    """A retry helps against a crash, not against an error that a person must fix."""
    try:
        state.result()
    except KodaError:
        return False
    except Exception:
        return True
    return False


# Prefect's cache does not know whether a result is up to date (tasks/runs/up_to_date.py does), and keeps nothing.
ONCE: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}


def _retried(retries: int, delay: Any, jitter: float) -> dict[str, Any]:
    """`delay`: seconds before each retry, the last one for all further ones; `jitter`: share of it added at random."""
    delays = {"retry_delay_seconds": delay, "retry_jitter_factor": jitter}
    return {**ONCE, "retries": retries, **delays, "retry_condition_fn": worth_retrying}


STAGE = _retried(2, [2, 10], 0.5)
# The real limit, and the pause, depend on progress (tasks/deaths.py).
SEGMENT = _retried(1000, 1, 0.3)
UPLOAD = _retried(5, exponential_backoff(2), 0.5)
NIGHT = _retried(2, 60, 0)
