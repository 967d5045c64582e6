"""Conversations → rows of a fixed length with a loss mask: whole ones, as many as fit, none seeing another."""

import collections
import json
from pathlib import Path
from typing import Any

from model.data import chat, conversations, sources
from model.data import tokenizer as tokenizers
from model.data.blocks import hash_of, is_heldout
from model.data.chat import Message
from model.data.conversations import Conversation
from model.data.document import Flaw
from model.data.shards import STARTS, TRAINED, ShardWriter
from model.errors import KodaError
from model.files import read_json, write_json


class Rows:
    """Writes conversations into rows of `sequence_length + 1`; a row is filled up with end-of-text tokens, untrained.

    The filling is a segment of its own, so that no conversation is seen from it.
    """

    rows = 0  # begun so far

    def __init__(self, folder: Path, vocab_size: int, sequence_length: int, end: int):
        self.length, self.end = sequence_length + 1, end
        self._writer = ShardWriter(folder, vocab_size, self.length * 4096, marked=True)
        self._ids: list[int] = []
        self._marks: list[int] = []

    def add(self, tokens: chat.Tokens) -> None:
        """A conversation of at most one row's length."""
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
) -> dict[str, Any]:
    """Write train/ and heldout/ shards of rows, and prompts.json: what the held-out ones ask, and their answers.

    Each source is given as often as its weight says (a fraction by each conversation's hash). Returns the counts.
    Raises KodaError for a conversation that the settings refuse, saying where it is.
    """
    learned = tokenizers.load(tokenizer)
    size, end = learned.get_vocab_size(), tokenizers.end_of_text(learned)
    rows = {part: Rows(Path(out) / part, size, sequence_length, end) for part in ("train", "heldout")}
    counts: collections.Counter[str] = collections.Counter(conversations=0, heldout_conversations=0, too_long=0)
    prompts: list[dict[str, Any]] = []
    noted = Path(out) / "commits.json"  # by the first life; a later one reads the same rows
    if not noted.is_file():
        write_json(noted, sources.commits(source))
    commits: dict[str, str] = read_json(noted)

    def leave_out(flaw: Flaw) -> None:
        if bad_input == "refuse":
            raise KodaError(
                f"{flaw.name}: {flaw.detail}. Mend it, take it out, or leave all such out with sft.bad_input=skip."
            )
        counts[flaw.reason] += 1

    for name, weight in source.items():
        for found in conversations.conversations(name, split, commits.get(name, ""), language):
            if isinstance(found, Flaw):
                leave_out(found)
                continue
            whole = chat.encode(learned, found.messages, train_end)
            tokens = _fitted(whole, sequence_length + 1, too_long, found)
            if tokens is None:
                counts["too_long"] += 1
                continue
            counts["cut"] += tokens is not whole
            if not any(tokens.trained):
                leave_out(Flaw(found.name, "nothing_to_learn", "there is no answer in it (within the context)"))
            elif is_heldout(_question(found.messages), heldout_fraction):
                counts["heldout_conversations"] += 1
                rows["heldout"].add(tokens)
                prompts.append(_prompt(found.messages))
            else:
                copies = _copies(found.messages, weight)
                counts["conversations"] += copies > 0
                for _ in range(copies):
                    rows["train"].add(tokens)
    if not counts["conversations"] or not counts["heldout_conversations"]:
        raise KodaError(
            f"sft.source = {', '.join(source)} gives {counts['conversations']} conversations to learn from and "
            f"{counts['heldout_conversations']} to hold out ({counts['too_long']} were longer than the context of "
            f"{sequence_length} tokens): both parts need some."
        )
    for part in rows.values():
        part.close()
    write_json(Path(out) / "prompts.json", prompts)
    return {**{why: count for why, count in counts.items() if count or why == "too_long"}, "commits": commits}


def _fitted(tokens: chat.Tokens, length: int, too_long: str, found: Conversation) -> chat.Tokens | None:
    """The conversation if it fits a row; else what the setting says: its beginning, nothing, or an error."""
    if len(tokens.ids) <= length:
        return tokens
    if too_long == "refuse":
        raise KodaError(
            f"{found.name}: {len(tokens.ids)} tokens, the context takes {length}. Shorten it, or leave such out with "
            "sft.too_long=skip, or cut them with sft.too_long=truncate."
        )
    return chat.Tokens(tokens.ids[:length], tokens.trained[:length]) if too_long == "truncate" else None


def _prompt(messages: list[Message]) -> dict[str, Any]:
    """Everything up to the last answer, and that answer."""
    last = max(number for number, message in enumerate(messages) if message["role"] == "assistant")
    return {"messages": messages[:last], "answer": messages[last]["content"]}


def _question(messages: list[Message]) -> str:
    """What is asked first; many conversations may begin with the same system message."""
    return next((m["content"] for m in messages if m["role"] == "user"), messages[0]["content"])


def _copies(messages: list[Message], weight: float) -> int:
    """How often a conversation is given: the weight, rounded up or down by the conversation's hash."""
    share = hash_of(json.dumps(messages)) / 2**64
    return int(weight) + (share < weight % 1)
