"""The forms that a training step may have, and what each takes on a device: what a plan is made of."""

from dataclasses import dataclass, field

DOUBLINGS = 3  # of the configured rows, that are tried


@dataclass(frozen=True, kw_only=True)
class Form:
    """One form of a step: how it is computed, and what that takes on each device."""

    remat: str
    scan: bool
    fsdp: int
    rows: int
    state: int  # bytes of weights and optimizer
    temporary: int  # bytes that a step needs besides
    # Where it was compiled for the card; else empty, and no seconds.
    attention: str = ""  # cudnn, or blocks
    flops: dict[str, float] = field(default_factory=dict)  # of matrix products, by the type of what is multiplied
    wire: dict[str, float] = field(default_factory=dict)  # bytes of the results, by collective
    seconds: tuple[float, float] | None = None  # of a step: a range
    parts: dict[str, float] = field(default_factory=dict)  # seconds by kind of kernel, in the middle of the range

    @property
    def bytes(self) -> int:
        return self.state + self.temporary


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The configured form of a step, the best that was tried, and the checkpoint's size."""

    backend: str  # gpu: compiled for the card; cpu: the CPU's analysis of memory, and no times
    checkpoint: int  # bytes
    configured: Form
    chosen: Form
    tried: tuple[Form, ...]
    rows_that_fit: int  # in a step of the configured form
