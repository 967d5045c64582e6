"""The trackers that a training's curves can be mirrored to. Another one is a file and a line here."""

from collections.abc import Iterable
from importlib.util import find_spec

from model.errors import KodaError
from tasks.trackers.mlflow import MLflow
from tasks.trackers.tensorboard import TensorBoard
from tasks.trackers.tracker import Tracker
from tasks.trackers.trackio import Trackio
from tasks.trackers.wandb import WandB

TRACKERS: dict[str, type[Tracker]] = {
    tracker.name: tracker
    for tracker in (
        TensorBoard,
        WandB,
        Trackio,
        MLflow,
    )
}


def check_trackers(names: Iterable[str]) -> None:
    """Raise KodaError for a tracker that is not installed, or that lacks what it needs of the environment."""
    for name in names:
        tracker = TRACKERS[name]
        spec = find_spec(tracker.package)
        if spec is None or spec.origin is None:  # a folder of that name, as W&B makes one, is no package
            raise KodaError(
                f"track: {name} is not installed. Install it: "
                f"uv pip install --constraint requirements.lock --editable '.[{name}]'"
            )
        if lacks := tracker.lacks():
            raise KodaError(f"track: {name} {lacks}")
