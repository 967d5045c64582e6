"""What a tracker does: a service or a folder that shows the curves of many trainings beside each other."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar


@dataclass(frozen=True)
class Identity:
    """Which training it is, for a tracker: however often it is resumed, and never one that is built in its place."""

    folder: Path  # of the run
    stage: str  # or the training's path in the run's folder
    began: float  # as `time.time()`
    id: str  # `tiny-pretrain-3fa94c21b07e`

    @property
    def run(self) -> str:
        return self.folder.name


class Tracker(ABC):
    """A training's run in a tracker. Whatever goes wrong there raises an exception of its library's.

    Its address and its credentials come from environment variables, as its library reads them.
    """

    name: ClassVar[str]  # in settings, and of the extra that installs it
    package: ClassVar[str]  # that is imported
    settles: ClassVar[float] = 0.0  # seconds after `flush` from which what was logged survives the end of the process

    @classmethod
    def lacks(cls) -> str:
        """What it needs of the environment and is not there, with what to do about it; empty where nothing is."""
        return ""

    @classmethod
    def rest(cls, training: Path) -> str:
        """The command that sends what it did not get, once it can be reached again."""
        return f"python -m tasks.trackers {cls.name} {training} < /dev/null"

    @abstractmethod
    def open(self, training: Identity, config: dict[str, Any]) -> None:
        """Go on with the run of this training, or begin it."""

    @abstractmethod
    def log(self, step: int, values: dict[str, float], time: float) -> None:
        """Add figures of a step, measured at `time` (as `time.time()`); it may take them only at `flush`."""

    @abstractmethod
    def event(self, step: int, text: str, time: float) -> None:
        """Add something that happened, for people."""

    def rewind(self, step: int) -> None:  # noqa: B027
        """The training went back: figures from this step on come again. One that keeps both does nothing."""

    def flush(self) -> None:  # noqa: B027
        """Hand over what was logged."""

    @abstractmethod
    def close(self, finished: bool) -> None:
        """End the run; `finished`: the training reached its last step."""
