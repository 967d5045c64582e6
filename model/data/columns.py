"""Columns that no form of conversations reads: none that has text is dropped without a word."""

import re
from collections.abc import Collection
from typing import Any

from model.data.conversation import BadRow
from model.data.strings import strings

# What data sets record about a conversation, and what is no part of it.
METADATA = frozenset(
    {"category", "dataset", "date", "id", "lang", "language", "license", "model", "source", "split"}
    | {"tags", "task", "timestamp", "type", "url", "uuid"}
)
UNCLEAR = frozenset({"label", "mask"})  # true means `learn this` to some tools, and the opposite or a class to others
LABELS = "system|user|human|assistant|bot|model|instruction|input|output|response|prompt|question|answer|context"
# What templates put around messages: <|im_start|>user, [INST], `### Response:`, and Alpaca's first sentences.
MARK_UP = re.compile(
    r"(?i)<+[^<>\s]{,30}>+(?:(?:system|user|assistant|model)\b)?|\[/?INST\]"
    rf"|#+ *(?:{LABELS})\b:?|\b(?:{LABELS}):"
    r"|Below is an instruction that describes a task(?:, paired with an input that provides further context)?\."
    r"|Write a response that appropriately completes the request\."
)


def unread(columns: dict[str, Any], contents: list[str], metadata: Collection[str], place: str = "") -> list[str]:
    """Those of these columns that have text and are metadata, by METADATA or by `metadata`.

    Raises BadRow for text in another column, unless the messages' `contents` have it too, and for one that is UNCLEAR.
    """
    names = []
    for column, value in columns.items():
        texts = [text for text in strings(value) if text and not text.isspace()]
        is_mark = column in UNCLEAR and value is not None and not isinstance(value, str)
        if not texts and not is_mark:
            continue
        if column in METADATA or column.endswith("_id") or column in metadata:
            names.append(column)
        elif is_mark:
            raise BadRow(
                "unclear_mark",
                f"its `{place}{column}` is {value!r}, which tools read in different ways; `weight` 0 marks what is not "
                f"learned. sft.metadata=[{column!r}] leaves it unread",
            )
        elif not all(_repeats(text, contents) for text in texts):
            raise BadRow(
                "unread_text",
                f"its `{place}{column}` has text that is in no message. sft.metadata=[{column!r}] leaves it unread",
            )
    return names


def _repeats(text: str, contents: list[str]) -> bool:
    """Is a text part of a message, or, mark-up aside, of messages that follow each other?"""
    if any(text.strip() in content for content in contents):
        return True
    words = _words(text)
    return bool(words) and f" {words} " in f" {_words(' '.join(contents))} "


def _words(text: str) -> str:
    """A text without mark-up, with one space between its words."""
    return " ".join(MARK_UP.sub(" ", text).split())
