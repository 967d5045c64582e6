"""`python -m model.training JOB.json [UNTIL]`: train to step UNTIL, or to the last, from the newest checkpoint."""

import os
import sys
import time
from pathlib import Path

from model.accelerators import USABLE
from model.exit_codes import UNUSABLE
from model.parent import die_with_parent
from model.training.records import Event, log_event

BEGAN = time.time()  # before the imports, which take a second or two of the attempt


def main() -> int:
    die_with_parent()  # before the imports too, in which it could lose its parent
    if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:  # the older name; JAX takes no two
        os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", str(USABLE))  # else 0.75, and not what `koda plan` counts with
    # JAX pins 64 GB for copies of the state at most, less than that of a model with 6 B weights.
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    os.environ.setdefault("XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB", str(memory // 2**30))
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and "cpu" not in platforms.split(","):
        os.environ["JAX_PLATFORMS"] = f"{platforms},cpu"  # small things are computed on the host beside the GPU's step
    from model.errors import KodaError
    from model.training.job import Job
    from model.training.loop import train

    job = None
    try:
        job = Job.read(Path(sys.argv[1]))
        return train(job, int(sys.argv[2]) if len(sys.argv) > 2 else job.recipe.steps, BEGAN)
    except KodaError as error:
        print(f"koda: {error}", file=sys.stderr)
        if job and Path(job.folder).is_dir():  # a run that waits for this machine does not see its output
            log_event(Path(job.folder), Event.REFUSED, 0, cause=str(error))
        return UNUSABLE


if __name__ == "__main__":
    sys.exit(main())
