"""`koda eval`: any model, on either suite, alone or beside another on the same items."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from model.arrays import COMMIT
from model.errors import KodaError
from model.training.protocol import CHECKPOINTS
from tasks.run import existing, folder_of

STAGES = ("extend", "sft", "checkpoint")  # whose weights a run's name stands for: the last that is there
TOKENIZER = "tokenize/tokenizer.json"


class Found(NamedTuple):
    """A model, and the folder `tokenize` of the run that it belongs to, if it belongs to one."""

    name: str
    path: Path
    tokens: Path | None


def locate(model: str) -> Found:
    """What MODEL names: a path to a model, a run, or RUN/STAGE. Raises KodaError for anything else."""
    path = Path(model)
    if path.is_file() or any((path / name).is_file() for name in (COMMIT, "config.json")):
        run = next((parent for parent in path.absolute().parents if (parent / TOKENIZER).is_file()), None)
        return Found(model, path, run / "tokenize" if run else None)
    name, _, stage = model.partition("/")
    if not (folder_of(name) / "run.toml").is_file():
        raise KodaError(f"{model} is no model: there is no run of that name, and no folder or file with a model in it.")
    folder = existing(name)
    if stage not in ("", *STAGES, "pretrain"):
        raise KodaError(f"{model}: weights are in {', '.join((*STAGES, 'pretrain'))}.")
    places = [folder / one / "weights" for one in STAGES if stage in ("", one)]
    if stage in ("", "pretrain"):
        checkpoints = [
            p.parent for p in (folder / "pretrain" / CHECKPOINTS).glob(f"*/{COMMIT}") if p.parent.name.isdigit()
        ]
        places += sorted(checkpoints, key=lambda p: -int(p.name))
    found = next((place for place in places if (place / COMMIT).is_file()), None)
    if found is None:
        raise KodaError(f"{model} has no weights yet: the command that began the run goes on with it.")
    return Found(model, found, folder / "tokenize")


def evaluate(model: str, suite: str, tasks: Sequence[str], data: str, limit: int, against: str) -> dict[str, Any]:
    """`{model, suite, tasks: {name: {acc, acc_norm, stderr, perplexity, n, chance, …}}, average}`.

    With `against`, `paired` compares each task with that model's: the difference of what was right, and how often luck
    alone would part the two so far. Raises KodaError for what cannot be asked.
    """
    from model.evaluation.figures import average, paired
    from model.evaluation.score import Scorer
    from model.evaluation.subject import open_model
    from model.evaluation.suite import ask, suite_items

    subjects = [locate(name) for name in (model, against) if name]
    source = data or (str(subjects[0].tokens or "") if suite == "homemade" else "hub")
    if not source:
        raise KodaError(f"{model} belongs to no run: name the one whose text the items are made of, --data runs/NAME.")
    if suite == "homemade" and (Path(source) / TOKENIZER).is_file():
        source = str(Path(source) / "tokenize")
    items = suite_items(suite, tasks, source, limit)  # type: ignore[arg-type]
    marked = []
    for found in subjects:
        subject = open_model(found.path, found.tokens / "tokenizer.json" if found.tokens else None)
        marked.append(ask(subject, Scorer(subject.model), items))
    figures = {name: one.figures for name, one in marked[0].items()}
    result = {"model": model, "suite": suite, "tasks": figures, "average": average(figures)}
    if against:
        pairs = {name: paired(marked[1][name].right, one.right)._asdict() for name, one in marked[0].items()}
        result |= {"against": against, "paired": pairs}
    return result


def as_lines(found: dict[str, Any]) -> list[str]:
    """The result as a person reads it."""
    lines = [f"{found['model']} · {found['suite']} suite", ""]
    head = f"{'task':<16}{'acc, %':>9}{'acc_norm, %':>13}{'± s.e.':>9}{'perplexity':>12}{'chance, %':>11}{'items':>7}"
    lines.append(head + (f"{'− ' + found['against'] + ', %':>24}{'p':>8}" if "against" in found else ""))
    for name, f in found["tasks"].items():
        perplexity = "" if f["perplexity"] is None else f"{f['perplexity']:,.1f}" if f["perplexity"] < 1e6 else "> 1e6"
        line = f"{name:<16}{_percent(f['acc']):>9}{_percent(f['acc_norm']):>13}{_percent(f['stderr']):>9}"
        line += f"{perplexity:>12}{_percent(f['chance']):>11}{f['n']:>7}"
        if "against" in found:
            pair = found["paired"][name]
            line += f"{100 * pair['difference']:>+16.1f} ± {100 * pair['stderr']:<5.1f}{pair['p']:>8.3f}"
        lines.append(line + (f"  ({f['truncated']} cut to the context)" if f.get("truncated") else ""))
    if found["average"] is not None:
        lines.append(
            f"{'average':<16}{_percent(found['average']):>9}  of the tasks with choices, acc_norm where it is given"
        )
    return lines


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"
