"""What a ladder measured: made by it, written to ladder.json, read by what forecasts and shows it."""

from dataclasses import dataclass

from model.ladder.law import Forecast, Law, Point


@dataclass(frozen=True)
class Training:
    """A finished training of a ladder."""

    rung: str  # layers x width
    n: float  # floating-point operations of a step per token, over 6
    steps: int
    tokens: int
    learning_rate: float
    bits_per_byte: float  # held out

    @property
    def point(self) -> Point:
        return Point(self.n, self.tokens, self.bits_per_byte)


@dataclass(frozen=True)
class Ladder:
    """Trainings at the preset's rate, the law that fits them, and the shortest trainings at other rates."""

    text: str  # what identifies the text and its tokenizer
    trainings: list[Training]
    rates: list[Training]
    law: Law
    flops: float  # that all of them took


@dataclass(frozen=True)
class Forecasted:
    """What a run was expected to reach, before its first step."""

    ladder: str  # the run whose ladder it is by
    text: str
    n: float
    tokens: int
    made: str  # when
    forecast: Forecast  # bits per byte
    beyond: float  # times the compute of the ladder's largest training
