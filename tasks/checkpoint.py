"""Stage 3: the finished checkpoint, verified and promoted to weights for the stages after it."""

from pathlib import Path

from model.figures import CheckpointFigures, PretrainFigures
from model.training.records import JOB
from tasks.runs.record import Built
from tasks.stage import stage
from tasks.supervise import call


@stage(version=1)
def checkpoint(out: Path, pretrained: Built[PretrainFigures]) -> CheckpointFigures:
    """Verify the last checkpoint (whole, finite, held-out loss as recorded) and write weights/."""
    log = out / "checkpoint.log"
    if pretrained.figures.imported:
        return call(
            "model.export.adopt:promote", log, CheckpointFigures, source=pretrained / "weights", out=out / "weights"
        )
    return call("model.training.promote:promote", log, CheckpointFigures, job=pretrained / JOB, out=out / "weights")
