"""`koda eval`: any model, on either suite, alone or beside another on the same items."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flows.cli.located import TOKENIZER, locate
from model.errors import KodaError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a run, RUN/STAGE, a folder or a .gguf file")
    parser.add_argument("--suite", choices=("standard", "homemade"), default="standard", help="(default: standard)")
    parser.add_argument("--tasks", default="", metavar="A,B", help="some of the suite's tasks (default: all)")
    parser.add_argument(
        "--data", default="", metavar="DIR", help="local JSONL for the standard suite (default: the Hub)"
    )
    parser.add_argument("--limit", type=int, default=0, help="items of each task at most (0: all)")
    parser.add_argument("--against", default="", metavar="MODEL", help="compare with this one, item by item")
    parser.add_argument("--json", action="store_true", help="for programs")


def main(arguments: argparse.Namespace) -> None:
    from flows.environment import causes_only

    names = [name for name in arguments.tasks.split(",") if name]
    if arguments.limit < 0:
        raise KodaError(f"--limit {arguments.limit}: a number of items, or 0 for all.")
    with causes_only():
        scores = evaluate(arguments.model, arguments.suite, names, arguments.data, arguments.limit, arguments.against)
    print(json.dumps(scores, indent=1, default=asdict) if arguments.json else "\n".join(as_lines(scores)))


def evaluate(model: str, suite: str, tasks: Sequence[str], data: str, limit: int, against: str) -> dict[str, Any]:
    """`{model, suite, tasks: {name: {acc, acc_norm, stderr, perplexity, n, chance, …}}, average}`.

    With `against`, `paired` compares each task with that model's: the difference of what was right, and its p-value.
    Raises KodaError for a model or a task that does not exist.
    """
    from model.evaluation.figures import average, paired
    from model.evaluation.score import Scorer
    from model.evaluation.subject import open_model
    from model.evaluation.suite import score, suite_items

    subjects = [locate(name) for name in (model, against) if name]
    source = data or (str(subjects[0].tokens or "") if suite == "homemade" else "hub")
    if not source:
        raise KodaError(f"{model} belongs to no run: name the one whose text the items are made of, --data runs/NAME.")
    if suite == "homemade" and (Path(source) / TOKENIZER).is_file():
        source = str(Path(source) / "tokenize")
    if suite == "homemade" and not (Path(source) / "heldout").is_dir():
        raise KodaError(f"{source} is no run: the home-made items are made of a run's held-out text, --data runs/NAME.")
    items = suite_items(suite, tasks, source, limit)  # type: ignore[arg-type]
    marked = []
    for located in subjects:
        subject = open_model(located.path, located.tokens / "tokenizer.json" if located.tokens else None)
        marked.append(score(subject, Scorer(subject.model), items))
    figures = {name: one.figures for name, one in marked[0].items()}
    result: dict[str, Any] = {"model": model, "suite": suite, "tasks": figures, "average": average(figures)}
    if against:
        pairs = {name: paired(marked[1][name].right, one.right)._asdict() for name, one in marked[0].items()}
        result |= {"against": against, "paired": pairs}
    return result


def as_lines(scores: dict[str, Any]) -> list[str]:
    """The result as a person reads it."""
    from tasks.reports.tables import TASK, Table, of_each, percent

    tasks = scores["tasks"]
    table = of_each("task", tasks, TASK, ("accuracy, %", "acc_norm, %", "± SE, %", "perplexity", "chance, %", "items"))
    if "against" in scores:
        pairs = [scores["paired"][name] for name in tasks]
        compared = [(f"{100 * p['difference']:+.1f} ± {100 * p['stderr']:.1f}", f"{p['p']:.3f}") for p in pairs]
        rows = [[*row, *more] for row, more in zip(table.rows, compared, strict=True)]
        table = Table([*table.head, f"− {scores['against']}, %", "p"], rows)
    lines = [f"{scores['model']} · {scores['suite']} suite", "", *table.text()]
    lines += [
        f"{name}: {figures.truncated} items cut to the context" for name, figures in tasks.items() if figures.truncated
    ]
    if scores["average"] is not None:
        lines.append(f"average of the tasks with choices, acc_norm where there is one: {percent(scores['average'])} %")
    return lines
