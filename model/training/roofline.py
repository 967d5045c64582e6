"""How long a compiled step takes on a card that is not here: each kernel at the rate of what bounds it.

A kernel takes what its arithmetic takes or what its memory traffic takes, whichever is longer (Williams et al. 2009).
The result is a range: the lower end has the higher of two shares of the maker's peaks, and all communication hidden
behind computation; the upper end the lower shares, and nothing hidden.
"""

from collections.abc import Sequence
from typing import NamedTuple

from model.accelerators import Accelerator
from model.training.hlo import Operation


class Shares(NamedTuple):
    """Of a card's peaks, what kernels reach: as `bench/gpu.py` has measured it on a card, else assumed.

    Large bfloat16 products are published at 60 to 80 % of the peak (power bounds them before the tensor cores do),
    cuDNN's causal attention at this head size and length at 20 to 45 % (Shah et al. 2024, arXiv:2407.08608), copies at
    75 to 92 % of the bandwidth, NCCL between two cards over PCIe at 60 to 80 % of the link.
    """

    gemm: float
    attention: float
    memory: float
    wire: float


SLOW, FAST = Shares(0.62, 0.20, 0.75, 0.60), Shares(0.80, 0.45, 0.92, 0.80)
# Fitted to 15 forms of two presets' steps, each of which then comes out within 6 % (bench/README.md).
MEASURED = {"H200": (Shares(0.70, 0.22, 0.73, 0.60), Shares(0.77, 0.25, 0.83, 0.80))}


class Estimate(NamedTuple):
    """Seconds of one step."""

    low: float
    high: float
    parts: dict[str, float]  # by kind of operation, in the middle of the range; communication not hidden

    @property
    def middle(self) -> float:
        return (self.low + self.high) / 2


def estimate(operations: Sequence[Operation], card: Accelerator, devices: int) -> Estimate:
    """The step that these operations are, on each of `devices` cards."""
    slow, fast = (_seconds(operations, card, devices, shares) for shares in MEASURED.get(card.name, (SLOW, FAST)))
    computed = sum(fast.values()) - fast["collective"]
    return Estimate(
        low=max(computed, fast["collective"]),
        high=sum(slow.values()),
        parts={kind: (fast[kind] + slow[kind]) / 2 for kind in fast},
    )


def _seconds(operations: Sequence[Operation], card: Accelerator, devices: int, shares: Shares) -> dict[str, float]:
    total = {"gemm": 0.0, "attention": 0.0, "other": 0.0, "collective": 0.0}
    for operation in operations:
        if operation.kind == "collective":
            seconds = operation.wire * _crossings(operation.name, devices) / (shares.wire * card.link)
        else:
            rate = (
                shares.attention * card.bfloat16
                if operation.kind == "attention"
                else shares.gemm * _peak(operation, card)
            )
            seconds = max(operation.flops / rate, operation.bytes / (shares.memory * card.bandwidth))
        total[operation.kind] += operation.times * seconds
    return total


def _peak(operation: Operation, card: Accelerator) -> float:
    if operation.name.startswith("f8"):
        return card.float8 or card.bfloat16
    return card.bfloat16 if operation.name in ("bf16", "f16") else card.tf32


def _crossings(collective: str, devices: int) -> float:
    """How often a byte of the result crosses a device's link, in a ring of so many devices."""
    share = (devices - 1) / devices
    return {"all-reduce": 2 * share, "reduce-scatter": devices - 1.0, "collective-permute": 1.0}.get(collective, share)
