"""Conversations to learn from: their sources, and their packing into rows with a loss mask."""

import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model.data import chat, docs
from model.data import tokenizer as tokenizers
from model.data.blocks import is_heldout
from model.data.shards import STARTS, TRAINED, ShardWriter
from model.errors import KodaError
from model.files import write_json

QUESTIONS = ("What does `{}` do?", "What is `{}` for?", "Explain `{}`.", "Tell me about `{}`.")
SENTENCE = re.compile(r"(?s)^(.{20,240}?[.!?])(?:\s|$)")


def fingerprint(source: str) -> str:
    """What the conversations depend on."""
    if source == "docs":
        return f"python {sys.version}"
    path = Path(source)
    if not path.is_file():
        raise KodaError(f"sft.source = {source!r} does not exist. It takes `docs`, or a JSONL file of Dolly's columns.")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def conversations(source: str) -> Iterator[list[chat.Message]]:
    """Question and answer pairs of a source, as chat messages."""
    yield from (_from_docs() if source == "docs" else _from_dolly(Path(source)))


def _from_docs() -> Iterator[list[chat.Message]]:
    """The standard library's own answers: what a documented thing does, in the first sentence of its docstring."""
    for name, path in docs.modules(frozenset({"stdlib"})):
        for entry in docs.entries(name, path):
            found = SENTENCE.match(" ".join(entry.text.split("\n\n")[0].split()))
            if found and not any(part.startswith("_") for part in entry.name.split(".")):
                digest = hashlib.sha256(entry.name.encode()).digest()
                question = QUESTIONS[digest[0] % len(QUESTIONS)].format(entry.name)
                yield [{"role": "user", "content": question}, {"role": "assistant", "content": found[1]}]


def _from_dolly(path: Path) -> Iterator[list[chat.Message]]:
    """Rows with Dolly's columns: instruction, context (may be empty), response."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row: dict[str, Any] = json.loads(line.decode())
                question, answer = row["instruction"], row["response"]
            except (ValueError, KeyError, TypeError) as error:
                raise KodaError(
                    f"{path}, line {number}: not a row with `instruction` and `response` ({error})."
                ) from None
            if context := row.get("context"):
                question = f"{question}\n\n{context}"
            yield [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def pack(out: str, source: str, tokenizer: str, sequence_length: int, heldout_fraction: float) -> dict[str, Any]:
    """Write train/ and heldout/ shards of whole conversations in rows of `sequence_length + 1`; returns the counts.

    A conversation longer than a row is left out and counted. Rows are filled up with the end-of-text token, which is
    not trained there. prompts.json holds the questions of the held-out part, with their answers.
    """
    learned = tokenizers.load(tokenizer)
    size, row_length, end = learned.get_vocab_size(), sequence_length + 1, tokenizers.end_of_text(learned)
    writers = {
        part: ShardWriter(Path(out) / part, size, row_length * 4096, marked=True) for part in ("train", "heldout")
    }
    rows: dict[str, tuple[list[int], list[int]]] = {part: ([], []) for part in writers}
    counts = {"conversations": 0, "heldout_conversations": 0, "too_long": 0}
    prompts: list[dict[str, str]] = []

    def flush(part: str) -> None:
        ids, marks = rows[part]
        gap = row_length - len(ids)
        # The filling is a segment of its own, so that no conversation is seen from it.
        writers[part].add(ids + [end] * gap, marks + [STARTS] * min(gap, 1) + [0] * (gap - 1))
        rows[part] = ([], [])

    for messages in conversations(source):
        tokens = chat.encode(learned, messages)
        if len(tokens.ids) > row_length:
            counts["too_long"] += 1
            continue
        part = "heldout" if is_heldout(messages[0]["content"], heldout_fraction) else "train"
        counts["conversations" if part == "train" else "heldout_conversations"] += 1
        if part == "heldout":
            prompts.append({"question": messages[0]["content"], "answer": messages[-1]["content"]})
        if len(rows[part][0]) + len(tokens.ids) > row_length:
            flush(part)
        marks = [TRAINED * learn for learn in tokens.trained]
        marks[0] |= STARTS
        rows[part][0].extend(tokens.ids)
        rows[part][1].extend(marks)
    if not counts["conversations"] or not counts["heldout_conversations"]:
        raise KodaError(
            f"sft.source = {source!r} gives {counts['conversations']} conversations to learn from and "
            f"{counts['heldout_conversations']} to hold out ({counts['too_long']} were longer than the context of "
            f"{sequence_length} tokens): both parts need some."
        )
    for part, writer in writers.items():
        flush(part)
        writer.close()
    write_json(Path(out) / "prompts.json", prompts)
    return counts
