"""Conversations → rows of a fixed length with a loss mask: complete conversations that cannot attend to each other."""

import collections
import json
from pathlib import Path
from typing import Any

from model.data import chat, conversations, sources
from model.data import tokenizer as tokenizers
from model.data.chat import Message
from model.data.conversation import Conversation
from model.data.document import COUNTED, Flaw
from model.data.heldout import hash_of, is_heldout
from model.data.shards import STARTS, TRAINED, ShardWriter
from model.errors import KodaError
from model.figures import PackingFigures
from model.files import read_json, write_json


class Rows:
    """Writes conversations into rows of `sequence_length + 1`, padded with untrained end-of-text tokens.

    The padding is a segment of its own, so that it cannot attend to a conversation.
    """

    rows = 0  # begun so far

    def __init__(self, folder: Path, vocab_size: int, sequence_length: int, end: int):
        self.length, self.end = sequence_length + 1, end
        self._writer = ShardWriter(folder, vocab_size, self.length * 4096, marked=True)
        self._ids: list[int] = []
        self._marks: list[int] = []

    def add(self, tokens: chat.Tokens) -> None:
        """Add a conversation, which must not be longer than a row."""
        if self._ids and len(self._ids) + len(tokens.ids) > self.length:
            self._flush()
        self.rows += not self._ids
        marks = [TRAINED * learn for learn in tokens.trained]
        marks[0] |= STARTS
        self._ids += tokens.ids
        self._marks += marks

    def close(self) -> None:
        if self._ids:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        gap = self.length - len(self._ids)
        self._writer.add(self._ids + [self.end] * gap, self._marks + [STARTS] * min(gap, 1) + [0] * (gap - 1))
        self._ids, self._marks = [], []


def pack(
    out: str,
    source: dict[str, float],
    split: str,
    language: str,
    tokenizer: str,
    sequence_length: int,
    heldout_fraction: float,
    too_long: str,
    bad_input: str,
    train_end: bool,
    metadata: list[str],
) -> PackingFigures:
    """Write train/ and heldout/ shards of rows, and prompts.json: the held-out questions and their answers.

    Each source is repeated as often as its weight (a fraction selects by each conversation's hash). Returns the counts.
    Raises KodaError, with its place, for a conversation that the settings refuse.
    """
    encoder = tokenizers.load(tokenizer)
    size, end = encoder.get_vocab_size(), tokenizers.end_of_text(encoder)
    rows = {part: Rows(Path(out) / part, size, sequence_length, end) for part in ("train", "heldout")}
    counts: collections.Counter[str] = collections.Counter(conversations=0, heldout_conversations=0, too_long=0, cut=0)
    unread: collections.Counter[str] = collections.Counter()  # rows by column
    prompts: list[dict[str, Any]] = []
    record = Path(out) / "commits.json"  # of the first attempt, so that later attempts read the same rows
    if not record.is_file():
        write_json(record, sources.commits(source))
    commits: dict[str, str] = read_json(record)

    def leave_out(flaw: Flaw) -> None:
        if bad_input == "refuse" and flaw.reason not in COUNTED:
            raise KodaError(
                f"{flaw.name}: {flaw.detail}. Fix it, remove it, or leave out all such input with sft.bad_input=skip."
            )
        counts[flaw.reason] += 1

    for name, weight in source.items():
        for item in conversations.conversations(name, split, commits.get(name, ""), language, metadata):
            if isinstance(item, Flaw):
                leave_out(item)
                continue
            unread.update(item.unread)
            complete = chat.encode(encoder, item.messages, train_end, item.unlearned)
            tokens = _fit(complete, sequence_length + 1, too_long, item.name)
            if tokens is None:
                counts["too_long"] += 1
                continue
            counts["cut"] += tokens is not complete
            if not any(tokens.trained):
                leave_out(Flaw(item.name, "nothing_to_learn", "there is no answer in it (within the context)"))
            elif is_heldout(_question(item.messages), heldout_fraction):
                counts["heldout_conversations"] += 1
                rows["heldout"].add(tokens)
                prompts.append(_prompt(item))
            else:
                copies = _copies(item.messages, weight)
                counts["conversations"] += copies > 0
                for _ in range(copies):
                    rows["train"].add(tokens)
    kinds = {name: counts.pop(name) for name in ("conversations", "heldout_conversations", "too_long", "cut")}
    skipped = {reason: count for reason, count in counts.items() if count}
    if not kinds["conversations"] or not kinds["heldout_conversations"]:
        bad = "".join(f", {count} left out as {reason}" for reason, count in skipped.items())
        raise KodaError(
            f"sft.source = {', '.join(source)} has {kinds['conversations']} conversations to train on and "
            f"{kinds['heldout_conversations']} held out ({kinds['too_long']} were longer than the context of "
            f"{sequence_length} tokens, {kinds['cut']} were cut to it{bad}). Both parts need some."
        )
    for part in rows.values():
        part.close()
    write_json(Path(out) / "prompts.json", prompts)
    return PackingFigures(**kinds, skipped=skipped, unread=dict(unread), commits=commits)


def _fit(tokens: chat.Tokens, length: int, too_long: str, name: str) -> chat.Tokens | None:
    """A conversation if it fits a row; else, as set by `too_long`, its beginning, None, or KodaError."""
    if len(tokens.ids) <= length:
        return tokens
    if too_long == "refuse":
        raise KodaError(
            f"{name}: {len(tokens.ids)} tokens, the context takes {length}. Shorten it, leave out all such with "
            "sft.too_long=skip, or cut them with sft.too_long=truncate."
        )
    return chat.Tokens(tokens.ids[:length], tokens.trained[:length]) if too_long == "truncate" else None


def _prompt(item: Conversation) -> dict[str, Any]:
    """Everything up to the last answer that is to be learned, and that answer."""
    answers = {number for number, message in enumerate(item.messages) if message["role"] == "assistant"}
    last = max(answers - item.unlearned)
    return {"messages": item.messages[:last], "answer": item.messages[last]["content"]}


def _question(messages: list[Message]) -> str:
    """The first question, by which a conversation is held out: many may begin with the same system message."""
    return next((m["content"] for m in messages if m["role"] == "user"), messages[0]["content"])


def _copies(messages: list[Message], weight: float) -> int:
    """How often a conversation is repeated: the weight, rounded up or down by the conversation's hash."""
    share = hash_of(json.dumps(messages)) / 2**64
    return int(weight) + (share < weight % 1)
