"""Conversations to train on: `sft.source`, read by its form and its columns.

A row is of one of the FORMS, by the column that it has; or a message of OASST's trees (trees.py).
"""

import hashlib
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, NamedTuple

from model.data import docs, hub, instructions, readers, sources, turns
from model.data.columns import unread
from model.data.conversation import MARKS, BadRow, Conversation, Turn, conversation, learned
from model.data.decoding import control_character
from model.data.document import Flaw
from model.data.readers import Row
from model.data.strings import lone_surrogate
from model.data.trees import Trees, is_message
from model.files import sha256

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
QUESTIONS = ("What does `{}` do?", "What is `{}` for?", "Explain `{}`.", "Tell me about `{}`.")
SENTENCE = re.compile(r"(?s)^(.{20,240}?[.!?])(?:\s|$)")


class Form(NamedTuple):
    """A form of rows: the columns that it reads, beside those of all forms, and a function row, metadata → turns."""

    columns: frozenset[str]
    read: Callable[[dict[str, Any], Collection[str]], list[Turn]]


FORMS = {  # by the column that a row of this form has
    "messages": Form(frozenset({"messages"}), lambda row, metadata: turns.read(row["messages"], "messages", metadata)),
    "conversations": Form(
        frozenset({"conversations"}), lambda row, metadata: turns.read(row["conversations"], "conversations", metadata)
    ),
    "instruction": Form(instructions.READ, lambda row, _: instructions.read(row)),
}
OF_ALL_FORMS = MARKS | {"system"}


def fingerprint(source: str) -> str:
    """A string that changes with the conversations of a source; empty for the Hub."""
    if source == "docs":
        return f"python {sys.version}"
    if sources.is_hub(source):
        hub.named(source)
        return ""
    return " ".join(sha256(path) for path in sources.files(source, SUFFIXES, "sft.source"))


def check(source: str) -> None:
    """Raise KodaError for a source that is not there or has no file of conversations."""
    if sources.is_hub(source):
        hub.named(source)
    elif source != "docs":
        sources.files(source, SUFFIXES, "sft.source")


def passed_over(source: str) -> list[str]:
    """A line about each kind of files that a folder has and that are not read."""
    return sources.passed_over(source, SUFFIXES)


def conversations(
    source: str, split: str, commit: str, language: str, metadata: Collection[str] = ()
) -> Iterator[Conversation | Flaw]:
    """The conversations of a source (of a Hub data set, at `commit`), and its flaws.

    Of OASST's trees, those in `language`; all if it is empty. `metadata`: columns that are no part of a conversation.
    """
    if source == "docs":
        yield from _from_docs()
        return
    trees = Trees(source)
    for item in _rows(source, split, commit):
        if isinstance(item, Flaw):
            yield item
            continue
        name, row = item
        if is_message(row):
            trees.add(row)
        elif is_message(row.get("prompt")):
            trees.add(row["prompt"])
        else:
            yield _checked(_from_row(name, row, metadata))
    yield from map(_checked, trees.conversations(language))


def _rows(source: str, split: str, commit: str) -> Iterable[Row | Flaw]:
    if sources.is_hub(source):
        name, config, _ = hub.named(source)
        for index in range(hub.shards(name, config, split, commit)):
            yield from hub.rows(name, config, split, commit, index)
        return
    for path in sources.files(source, SUFFIXES, "sft.source"):
        yield from readers.rows(path)


def _from_docs() -> Iterator[Conversation]:
    """Questions about the standard library, each answered by the first sentence of a docstring."""
    for name, path in docs.modules(frozenset({"stdlib"})):
        for entry in docs.entries(name, path):
            sentence = SENTENCE.match(" ".join(entry.text.split("\n\n")[0].split()))
            if sentence and not any(part.startswith("_") for part in entry.name.split(".")):
                digest = hashlib.sha256(entry.name.encode()).digest()
                question = QUESTIONS[digest[0] % len(QUESTIONS)].format(entry.name)
                yield conversation(entry.name, _pair(question, sentence[1]))


def _from_row(name: str, row: dict[str, Any], metadata: Collection[str]) -> Conversation | Flaw:
    """The conversation in a row of one of the FORMS, or a flaw."""
    row = {column: value for column, value in row.items() if value is not None}  # Parquet fills what is not there
    form = next((form for column, form in FORMS.items() if column in row), None)
    if form is None:
        has = ", ".join(sorted(row)) or "nothing"
        return Flaw(
            name, "no_conversation", f"the row has none of {', '.join(FORMS)}, nor is it of a tree; it has {has}"
        )
    try:
        read = _with_system(form.read(row, metadata), row.get("system"))
        if not learned(row, "", metadata):
            read = [turn._replace(learned=False) for turn in read]
        others = {column: value for column, value in row.items() if column not in form.columns | OF_ALL_FORMS}
        return conversation(name, read, unread(others, [turn.content for turn in read], metadata))
    except BadRow as bad:
        return Flaw(name, bad.reason, bad.detail)


def _with_system(read: list[Turn], system: Any) -> list[Turn]:
    """The turns after the message in a row's column `system`. Raises BadRow."""
    if system is not None and not isinstance(system, str):
        raise BadRow("no_conversation", f"its `system` is {type(system).__name__}, not a string")
    if not system or system.isspace():
        return read
    if read and read[0].role == "system":
        if read[0].content.strip() == system.strip():
            return read
        raise BadRow("bad_messages", "its `system` differs from the system message that it begins with")
    return [Turn("system", system), *read]


def _checked(item: Conversation | Flaw) -> Conversation | Flaw:
    """A conversation, or a flaw if a text of it is no text in UTF-8, or if a blank answer would be learned."""
    if isinstance(item, Flaw):
        return item
    for number, message in enumerate(item.messages):
        if detail := lone_surrogate(message["content"]):
            return Flaw(item.name, "lone_surrogate", f"in message {number}, {detail}")
        if detail := control_character(message["content"], message["content"].encode()):
            return Flaw(item.name, "not_text", f"in message {number}, {detail}")
        if message["role"] == "assistant" and number not in item.unlearned and not message["content"].strip():
            return Flaw(item.name, "nothing_to_learn", f"its answer is blank (message {number})")
    return item


def _pair(question: str, answer: str) -> list[Turn]:
    return [Turn("user", question), Turn("assistant", answer)]
