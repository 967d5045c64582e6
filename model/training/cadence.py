"""When the next temporary save is due: as soon as the measured cost of one allows."""

import math
from collections import deque
from dataclasses import asdict, dataclass
from statistics import median

FIRST = 10.0  # seconds from the beginning of an attempt to its first temporary save, whose cost is not known yet
FAULT_EVERY = 3600.0  # seconds between faults, for which an optimum and the effective time are predicted


@dataclass(frozen=True)
class SaveCost:
    """What a save costs a training, in seconds; the mean of the last ones, each half as much as the one after it."""

    stall: float  # that the step loop waits
    slowdown: float  # by which the steps during the write are slower than those without one
    write: float  # from its beginning to its commit

    def total(self) -> float:
        """Seconds of training that are lost."""
        return self.stall + self.slowdown

    def optimal_interval(self) -> float:
        """Seconds between two saves that lose least where a fault comes each FAULT_EVERY: √(2 · cost · FAULT_EVERY).

        J. W. Young, A first order approximation to the optimum checkpoint interval (1974).
        """
        return math.sqrt(2 * self.total() * FAULT_EVERY)


class Cadence:
    """Measures what saves cost, and how long the next one has to wait. The caller has the clock, in seconds."""

    def __init__(self, share: float, disk_share: float, longest: float):
        """`share`: of the training's time that saves may cost; `disk_share`: of the time in which one may be being
        written; `longest`: seconds between two saves at most."""
        self.share, self.disk_share, self.longest = share, disk_share, longest
        self.cost: SaveCost | None = None  # None before the first save is committed
        self._alone: deque[float] = deque(maxlen=128)  # seconds of steps while nothing is written
        self._during: list[float] = []  # and while the save is
        self._save: tuple[float, float] | None = None  # when the one that is being written began, and its stall
        self._last: float | None = None  # when the last step was made, if the next takes no more than a step

    def interval(self) -> float:
        """Seconds from the beginning of a save to that of the next."""
        if not self.share:
            return self.longest
        if self.cost is None:
            return min(FIRST, self.longest)
        return min(self.longest, max(self.cost.total() / self.share, self.cost.write / self.disk_share))

    def figures(self) -> dict[str, float]:
        """The interval, the one that would lose least, and what a save costs, in seconds; empty before the first."""
        if self.cost is None:
            return {}
        return {"interval": self.interval(), "optimal_interval": self.cost.optimal_interval(), **asdict(self.cost)}

    def began(self, at: float, now: float) -> None:
        """A save began, and the step loop may go on now."""
        self._save, self._during, self._last = (at, now - at), [], None

    def step(self, now: float) -> None:
        """A step was made."""
        if self._last is not None:
            (self._during if self._save else self._alone).append(now - self._last)
        self._last = now

    def interrupt(self) -> None:
        """Something else takes time before the next step."""
        self._last = None

    def committed(self, now: float) -> None:
        """The save that was being written is committed."""
        if self._save is None:
            return
        (at, stall), self._save = self._save, None
        if self._during and self._alone:
            # The step that was under way when the save began, and is not timed, was slowed too.
            slowdown = max(0.0, median(self._during) - median(self._alone)) * (len(self._during) + 1)
        else:
            slowdown = self.cost.slowdown if self.cost else 0.0
        new = SaveCost(stall, slowdown, now - at)
        old = self.cost or new
        self.cost = SaveCost(
            (old.stall + new.stall) / 2, (old.slowdown + new.slowdown) / 2, (old.write + new.write) / 2
        )
