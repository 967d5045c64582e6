"""Conversations → rows of a fixed length with a loss mask: complete conversations that cannot attend to each other.

Rows of plain text may stand among them, so that a model goes on writing such text as well as before.
"""

import collections
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model.data import chat, conversations, sources
from model.data import tokenizer as tokenizers
from model.data.chat import Message
from model.data.conversation import Conversation
from model.data.document import COUNTED, Flaw
from model.data.heldout import hash_of, is_heldout
from model.data.shards import STARTS, TRAINED, Shards, ShardWriter
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


class Fitting:
    """The conversations of sources that fit a row and have something to learn; the others are counted, or refused."""

    def __init__(
        self,
        split: str,
        language: str,
        tokenizer: str,
        sequence_length: int,
        too_long: str,
        bad_input: str,
        train_end: bool,
        metadata: list[str],
    ):
        self.vocabulary, self.length, self.train_end = tokenizers.load(tokenizer), sequence_length, train_end
        self.split, self.language, self.metadata = split, language, metadata
        self.too_long, self.bad_input = too_long, bad_input
        self.counts: collections.Counter[str] = collections.Counter()  # too_long, cut, and reasons of bad input
        self.unread: collections.Counter[str] = collections.Counter()  # rows by column

    def read(self, name: str, commit: str) -> Iterator[tuple[Conversation, chat.Tokens]]:
        """Those of one source. Raises KodaError, with its place, for one that the settings refuse."""
        for item in conversations.conversations(name, self.split, commit, self.language, self.metadata):
            if isinstance(item, Flaw):
                self._leave_out(item)
                continue
            self.unread.update(item.unread)
            complete = chat.encode(self.vocabulary, item.messages, self.train_end, item.unlearned)
            tokens = _fit(complete, self.length + 1, self.too_long, item.name)
            if tokens is None:
                self.counts["too_long"] += 1
                continue
            self.counts["cut"] += tokens is not complete
            if any(tokens.trained):
                yield item, tokens
            else:
                self._leave_out(Flaw(item.name, "nothing_to_learn", "there is no answer in it (within the row)"))

    def _leave_out(self, flaw: Flaw) -> None:
        if self.bad_input == "refuse" and flaw.reason not in COUNTED:
            raise KodaError(
                f"{flaw.name}: {flaw.detail}. Fix it, remove it, or leave out all such input with sft.bad_input=skip."
            )
        self.counts[flaw.reason] += 1

    def skipped(self) -> dict[str, int]:
        """How many were left out as bad input, by reason."""
        return {reason: count for reason, count in self.counts.items() if count and reason not in ("too_long", "cut")}

    def too_few(self, source: dict[str, float], trained: int, heldout: int) -> KodaError:
        """The error that a part has no conversation."""
        bad = "".join(f", {count} left out as {reason}" for reason, count in self.skipped().items())
        return KodaError(
            f"sft.source = {', '.join(source)} has {trained} conversations to train on and {heldout} held out "
            f"({self.counts['too_long']} were longer than a row of {self.length} tokens, "
            f"{self.counts['cut']} were cut to it{bad}). Both parts need some."
        )


def check(source: dict[str, float], fitting: Fitting) -> None:
    """Raise KodaError where not one conversation fits a row; nothing is read after the first that does."""
    if not any(True for name in source for _ in fitting.read(name, "")):
        raise fitting.too_few(source, 0, 0)


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
    text: str,
    text_share: float,
) -> PackingFigures:
    """Write train/ and heldout/ shards of rows, and prompts.json: the held-out questions and their answers.

    Each source is repeated as often as its weight (a fraction selects by each conversation's hash). A `text_share` of
    the rows of train/ are of the token shards in the folder `text`. Returns the counts. Raises KodaError, with its
    place, for a conversation that the settings refuse.
    """
    fitting = Fitting(split, language, tokenizer, sequence_length, too_long, bad_input, train_end, metadata)
    vocabulary = fitting.vocabulary
    rows = {
        part: Rows(Path(out) / part, vocabulary.size, sequence_length, vocabulary.end) for part in ("train", "heldout")
    }
    trained = heldout = 0
    prompts: list[dict[str, Any]] = []
    record = Path(out) / "commits.json"  # of the first attempt, so that later attempts read the same rows
    if not record.is_file():
        write_json(record, sources.commits(source))
    commits: dict[str, str] = read_json(record)
    for name, weight in source.items():
        for item, tokens in fitting.read(name, commits.get(name, "")):
            if is_heldout(_question(item.messages), heldout_fraction):
                heldout += 1
                rows["heldout"].add(tokens)
                prompts.append(_prompt(item))
            else:
                copies = _copies(item.messages, weight)
                trained += copies > 0
                for _ in range(copies):
                    rows["train"].add(tokens)
    if not trained or not heldout:
        raise fitting.too_few(source, trained, heldout)
    chat_rows = rows["train"].rows
    for row in _text_rows(Path(text), sequence_length + 1, round(chat_rows * text_share / (1 - text_share))):
        rows["train"].add(row)
    for part in rows.values():
        part.close()
    write_json(Path(out) / "prompts.json", prompts)
    return PackingFigures(
        conversations=trained,
        heldout_conversations=heldout,
        too_long=fitting.counts["too_long"],
        cut=fitting.counts["cut"],
        skipped=fitting.skipped(),
        unread=dict(fitting.unread),
        text_rows=rows["train"].rows - chat_rows,
        commits=commits,
    )


def _text_rows(text: Path, length: int, count: int) -> Iterator[chat.Tokens]:
    """At most `count` rows of `length` tokens, all to be learned, from places spread evenly over the text."""
    if not count:
        return
    shards = Shards(text)
    count = min(count, len(shards) // length)
    for number in range(count):
        tokens, _ = shards.read(number * len(shards) // count, length)
        yield chat.Tokens(tokens.tolist(), [True] * length)


def _fit(tokens: chat.Tokens, length: int, too_long: str, name: str) -> chat.Tokens | None:
    """A conversation if it fits a row; else, as set by `too_long`, its beginning, None, or KodaError."""
    if len(tokens.ids) <= length:
        return tokens
    if too_long == "refuse":
        raise KodaError(
            f"{name}: {len(tokens.ids)} tokens, a row takes {length}. Shorten it, leave out all such with "
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
