"""Is a step's loss one that training should go on from?"""

import math
from collections import deque

BAD_STEPS = 5  # this many in a row, and the training rolls back
WINDOW, ENOUGH = 128, 32  # good losses that a spike is judged against, and how many it takes to judge at all


class BadStepDetector:
    """Checks each step in turn and counts the bad ones in a row.

    Bad are losses or gradients that are not finite, and, where `deviations` is not 0, losses so many standard
    deviations above the mean of the good ones before. An attempt begins without a memory of them.
    """

    def __init__(self, deviations: float):
        self.deviations = deviations
        self.in_a_row = 0
        self._good: deque[float] = deque(maxlen=WINDOW)

    def __call__(self, loss: float, finite: bool) -> str:
        """What is bad about the step, in words; empty where it is good."""
        cause = "" if finite else "loss or gradient is not finite"
        if finite and self.deviations and len(self._good) >= ENOUGH:
            mean = math.fsum(self._good) / len(self._good)
            spread = math.sqrt(math.fsum((x - mean) ** 2 for x in self._good) / len(self._good))
            if loss > mean + self.deviations * spread:
                cause = f"loss {loss:.4g} is more than {self.deviations:g} deviations above {mean:.4g} ± {spread:.2g}"
        if cause:
            self.in_a_row += 1
        else:
            self.in_a_row = 0
            self._good.append(loss)
        return cause
