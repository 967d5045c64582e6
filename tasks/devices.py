"""The machine's GPUs, as `nvidia-smi` sees them, for work that must not take one from a training."""

import os
import subprocess
import time

from model.errors import KodaError
from tasks.progress import log_line

FREE = 0.05  # a GPU of whose memory no more than this share is taken is free: what an idle driver keeps is less
LOOK_EVERY = 60.0  # seconds


def gpus() -> dict[str, float]:
    """Each GPU that this process may use, and the share of its memory that is taken; nothing where there is none."""
    query = ["nvidia-smi", "--query-gpu=index,uuid,memory.used,memory.total", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    rows = (line.split(", ") for line in output.splitlines() if line.strip())
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {
        index: float(used) / float(total)
        for index, uuid, used, total in rows
        if allowed is None or any(_names(entry.strip(), index, uuid) for entry in allowed.split(","))
    }


def _names(entry: str, index: str, uuid: str) -> bool:
    """Does an entry of CUDA_VISIBLE_DEVICES name this GPU? By its number, by its UUID, or by how that begins; a part of
    a GPU (MIG) is named with the GPU's UUID in the older form."""
    parent = entry.removeprefix("MIG-").split("/")[0] if entry.startswith("MIG-GPU-") else entry
    return entry == index or (len(parent) > len("GPU-") and uuid.startswith(parent))


def platforms() -> dict[str, str]:
    """The environment of a training: on a machine with GPUs it must not fall back to the CPU in silence."""
    return {"JAX_PLATFORMS": "cuda,cpu"} if gpus() and "JAX_PLATFORMS" not in os.environ else {}


def free_or_cpu() -> dict[str, str]:
    """The environment of a process that takes a GPU which nobody uses, or else the processor."""
    taken = gpus()
    return (_on_free(taken) or {"JAX_PLATFORMS": "cpu"}) if taken else {}


def _on_free(taken: dict[str, float]) -> dict[str, str]:
    """The environment of a process on the freest of these GPUs; empty where even that is in use."""
    index, share = min(taken.items(), key=lambda one: one[1])
    return {"CUDA_VISIBLE_DEVICES": index, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if share <= FREE else {}


def await_free(hours: float) -> dict[str, str]:
    """The environment of a process that is to run on a GPU which nobody uses; on a machine without any, an empty one.

    Raises KodaError where none became free in so many hours.
    """
    deadline = time.monotonic() + 3600 * hours
    announced = False
    while taken := gpus():
        if environment := _on_free(taken):
            return environment
        if time.monotonic() >= deadline:
            raise KodaError(f"none of {len(taken)} GPUs became free in {hours:g} h; the next night tries again.")
        if not announced:
            log_line(f"waiting for one of {len(taken)} GPUs to become free …")
            announced = True
        time.sleep(LOOK_EVERY)
    return {}
