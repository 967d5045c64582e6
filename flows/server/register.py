"""Register Koda with a Prefect server: the work pool, its queues, the deployments and the automations."""

import subprocess
import sys

from flows.environment import causes_only, set_environment
from flows.server import automations
from model.errors import KodaError

POOL = "koda"
# How many runs at a time: one that trains may take all the GPUs there are, and one that only looks waits for no other.
QUEUES = {"gpu": 1, "background": 1, "checks": None}


def register() -> None:
    """Bring all of it to this version. Running runs are not touched, and paused queues are resumed."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.client.schemas.objects import WorkQueue
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"), overwrite=True)
        for name, limit in QUEUES.items():
            queue: WorkQueue
            try:
                queue = client.read_work_queue_by_name(name, work_pool_name=POOL)
            except ObjectNotFound:
                queue = client.create_work_queue(name, work_pool_name=POOL)
            client.update_work_queue(queue.id, concurrency_limit=limit, is_paused=False)
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise KodaError(f"`prefect deploy --all` failed:\n{(done.stdout + done.stderr).strip()[-2000:]}")
    automations.sync()


if __name__ == "__main__":
    set_environment(quiet=True)
    try:
        with causes_only():
            register()
    except KodaError as error:
        sys.exit(f"koda: {error}")
