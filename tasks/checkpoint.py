"""Stage 3: the finished checkpoint, verified and promoted to weights for the stages after it."""

from pathlib import Path
from typing import Any

from tasks.run import Built
from tasks.stage import stage
from tasks.supervise import call


@stage(version=1)
def checkpoint(out: Path, pretrained: Built) -> dict[str, Any]:
    """Verify the last checkpoint (whole, finite, held-out loss as recorded) and write weights/."""
    log = out / "checkpoint.log"
    if "imported" in pretrained.figures:
        return call("model.export.adopt:promote", log, source=pretrained / "weights", out=out / "weights")
    return call("model.training.promote:promote", log, job=pretrained / "job.json", out=out / "weights")
