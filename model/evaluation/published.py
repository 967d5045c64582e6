"""Zero-shot figures that others published, for the comparison with a run's own."""

from typing import NamedTuple

# The tasks of the standard suite, and the metric that is usually quoted of each. Reports and model cards look every
# task of `standard.TASKS` up here: a task belongs in both tables.
TASKS = {
    "hellaswag": "acc_norm",
    "arc_easy": "acc_norm",
    "arc_challenge": "acc_norm",
    "winogrande": "acc",
    "piqa": "acc_norm",
    "boolq": "acc",
    "openbookqa": "acc_norm",
    "lambada_openai": "acc",
}


class Row(NamedTuple):
    """A model's accuracies, as shares, and their source, a page; empty for KodaLite, whose model card has them."""

    name: str
    source: str
    scores: dict[str, float]


def _row(name: str, source: str, *percent: float | None) -> Row:
    published = zip(TASKS, percent, strict=True)
    return Row(name, source, {task: round(p / 100, 4) for task, p in published if p is not None})


TINYLLAMA = "https://arxiv.org/abs/2401.02385"
ROWS = (
    Row(
        "chance",
        "",
        {
            "hellaswag": 0.25,
            "arc_easy": 0.25,
            "arc_challenge": 0.25,
            "winogrande": 0.5,
            "piqa": 0.5,
            "boolq": 0.5,
            "openbookqa": 0.25,
            "lambada_openai": 0.0,
        },
    ),
    _row("KodaLite-1.3B", "", 25.65, 32.79, 21.50, 49.57, 58.92, 44.34, 25.00, 18.22),
    _row("Pythia-1.0B", TINYLLAMA, 47.16, 48.99, 27.05, 53.43, 69.21, 60.83, 31.40, None),
    _row("TinyLlama-1.1B (3T)", TINYLLAMA, 59.20, 55.25, 30.12, 59.12, 73.29, 57.83, 36.00, None),
)
