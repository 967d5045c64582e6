"""`koda eval`: any model, on either suite, alone or beside another on the same items."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from model.errors import KodaError
from model.training.records import CHECKPOINTS
from tasks.runs.paths import existing, folder_of

COMMIT = "COMMIT.json"
STAGES = ("extend", "sft", "checkpoint")  # a run's name means the weights of the last of these that is done
TOKENIZER = "tokenize/tokenizer.json"


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


class Located(NamedTuple):
    """A model, and the folder `tokenize` of the run that it belongs to, if it belongs to one."""

    name: str
    path: Path
    tokens: Path | None


def locate(model: str) -> Located:
    """What MODEL names: a path to a model, a run, or RUN/STAGE. Raises KodaError for anything else."""
    path = Path(model)
    if path.is_file() or any((path / name).is_file() for name in (COMMIT, "config.json")):
        run = next((parent for parent in path.absolute().parents if (parent / TOKENIZER).is_file()), None)
        return Located(model, path, run / "tokenize" if run else None)
    name, _, stage = model.partition("/")
    if not (folder_of(name) / "run.toml").is_file():
        raise KodaError(f"{model} is not a model: no run has that name, and no folder or file with a model.")
    folder = existing(name)
    if stage not in ("", *STAGES, "pretrain"):
        raise KodaError(f"{model}: weights are in {', '.join((*STAGES, 'pretrain'))}.")
    places = [folder / one / "weights" for one in STAGES if stage in ("", one)]
    if stage in ("", "pretrain"):
        checkpoints = [
            p.parent for p in (folder / "pretrain" / CHECKPOINTS).glob(f"*/{COMMIT}") if p.parent.name.isdigit()
        ]
        places += sorted(checkpoints, key=lambda p: -int(p.name))
    weights = next((place for place in places if (place / COMMIT).is_file()), None)
    if weights is None:
        raise KodaError(f"{model} has no weights yet: the command that began the run goes on with it.")
    return Located(model, weights, folder / "tokenize")


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
