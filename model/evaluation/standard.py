"""The eight standard zero-shot tasks, with the prompts and metrics of lm-evaluation-harness 0.4.13.

HellaSwag (Zellers et al. 2019), ARC (Clark et al. 2018), WinoGrande (Sakaguchi et al. 2020), PIQA (Bisk et al. 2020),
BoolQ (Clark et al. 2019), OpenBookQA (Mihaylov et al. 2018) and LAMBADA (Paperno et al. 2016) in OpenAI's version.
The metric that is quoted of each task is in `published.TASKS`: a task belongs in both tables.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from model.data import document, readers
from model.data.strings import lone_surrogate, strings
from model.errors import KodaError
from model.evaluation.items import Item

HARNESS = "0.4.13"  # the version of lm-evaluation-harness whose prompts and metrics these are
Row = dict[str, Any]


class Flaw(Exception):
    """A row that is not a valid item; the message names what is wrong with it."""


class Task(NamedTuple):
    """Where a task's rows are on the Hub, and the function that makes an item of a row."""

    path: str
    config: str | None
    split: str
    item: Callable[[Row], Item]


def _choices(context: str, choices: list[str], gold: int, normalised: bool = True) -> Item:
    if not 0 <= gold < len(choices):
        raise Flaw(f"the gold label is {gold}, and there are {len(choices)} choices")
    if empty := [number for number, choice in enumerate(choices) if not choice.strip()]:
        raise Flaw(f"choice {empty[0]} is empty")
    lengths = [len(choice) for choice in choices] if normalised else None
    return Item([context] * len(choices), [f" {choice}" for choice in choices], gold, 1 / len(choices), lengths)


def hellaswag(row: Row) -> Item:
    def clean(text: str) -> str:
        text = text.strip().replace(" [title]", ". ")  # brackets are left over from WikiHow
        return re.sub(r"\[.*?\]", "", text).replace("  ", " ")

    context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return _choices(clean(context), [clean(ending) for ending in row["endings"]], _number(row["label"]))


def arc(row: Row) -> Item:
    return _choices(f"Question: {row['question']}\nAnswer:", row["choices"]["text"], _lettered(row))


def openbookqa(row: Row) -> Item:
    return _choices(row["question_stem"], row["choices"]["text"], _lettered(row))


def winogrande(row: Row) -> Item:
    """The two names are put into the context; the end of the sentence is scored."""
    before, gap, after = row["sentence"].partition("_")
    options = [row["option1"], row["option2"]]
    gold = {"1": 0, "2": 1}.get(str(row["answer"]), -1)
    item = _choices(before, options, gold, normalised=False)
    if not gap or not after.strip():
        raise Flaw("the sentence has no `_` with text after it")
    return item._replace(contexts=[before + option for option in options], continuations=[f" {after.strip()}"] * 2)


def piqa(row: Row) -> Item:
    return _choices(f"Question: {row['goal']}\nAnswer:", [row["sol1"], row["sol2"]], _number(row["label"]))


def boolq(row: Row) -> Item:
    context = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
    return _choices(context, ["no", "yes"], _number(row["label"]), normalised=False)


def lambada(row: Row) -> Item:
    """The last word is predicted, out of the whole vocabulary."""
    context, space, last = row["text"].rpartition(" ")
    if not space or not last:
        raise Flaw("the text has no last word")
    return Item([context], [f" {last}"], 0, 0.0)


TASKS = {
    "hellaswag": Task("Rowan/hellaswag", None, "validation", hellaswag),
    "arc_easy": Task("allenai/ai2_arc", "ARC-Easy", "test", arc),
    "arc_challenge": Task("allenai/ai2_arc", "ARC-Challenge", "test", arc),
    "winogrande": Task("allenai/winogrande", "winogrande_xl", "validation", winogrande),
    "piqa": Task("baber/piqa", None, "validation", piqa),
    "boolq": Task("aps/super_glue", "boolq", "validation", boolq),
    "openbookqa": Task("allenai/openbookqa", "main", "test", openbookqa),
    "lambada_openai": Task("EleutherAI/lambada_openai", "default", "test", lambada),
}


def _number(label: Any) -> int:
    try:
        return int(label)
    except (TypeError, ValueError):
        raise Flaw(f"the gold label is {label!r}, and not a number") from None


def _lettered(row: Row) -> int:
    labels, key = row["choices"]["label"], str(row["answerKey"]).strip()
    if key not in labels:
        raise Flaw(f"the gold label is {key!r}, and the choices are {', '.join(map(str, labels))}")
    return labels.index(key)


def items(names: Iterable[str], data: str, limit: int = 0) -> dict[str, list[Item]]:
    """The items of these tasks, at most `limit` of each (0: all), from the folder `data` or from the Hub (`hub`).

    The folder's files are NAME.jsonl with the columns of the Hub's data set; tasks without a file are left out. Raises
    KodaError, with the item's number, for a row that is not a valid item.
    """
    if data == "hub":
        return {name: _items(name, f"{TASKS[name].path} on the Hub", _hub(TASKS[name]), limit) for name in names}
    files = {name: Path(data) / f"{name}.jsonl" for name in names}
    present = {name: path for name, path in files.items() if path.is_file()}
    if not present:
        raise KodaError(f"{data} has none of {', '.join(f'{name}.jsonl' for name in files)}.")
    return {name: _items(name, str(path), _lines(path), limit) for name, path in present.items()}


def _items(name: str, where: str, rows: Iterator[Row], limit: int) -> list[Item]:
    valid: list[Item] = []
    for number, row in enumerate(rows):
        if limit and number == limit:
            break
        try:
            valid.append(TASKS[name].item(row))
        except KeyError as missing:
            columns = ", ".join(row)
            raise KodaError(f"{where}, item {number}: there is no column {missing}; it has {columns}.") from None
        except (Flaw, AttributeError, TypeError) as flaw:
            raise KodaError(f"{where}, item {number}: {flaw}.") from None
    if not valid:
        raise KodaError(f"{where} has no items.")
    return valid


def _lines(path: Path) -> Iterator[Row]:
    for number, row in enumerate(readers.rows(path)):
        if isinstance(row, document.Flaw):
            raise KodaError(f"{path}, item {number}: {row.detail}.")
        if detail := next(filter(None, map(lone_surrogate, strings(row[1]))), ""):
            raise KodaError(f"{path}, item {number}: in its text, {detail}.")
        yield row[1]


def _hub(task: Task) -> Iterator[Row]:
    import datasets

    try:
        yield from datasets.load_dataset(task.path, task.config, split=task.split)
    except (OSError, ValueError) as error:
        raise KodaError(
            f"{task.path} cannot be read from the Hub ({type(error).__name__}: {error}). Local JSONL: --data DIR."
        ) from None
