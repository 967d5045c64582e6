"""Columns that no form of conversations reads: none that has text is dropped without a word."""

from collections.abc import Collection
from typing import Any

from model.data.conversation import BadRow
from model.data.strings import strings

# What data sets record about a conversation, and what is no part of it.
METADATA = frozenset(
    {"category", "dataset", "date", "id", "lang", "language", "license", "model", "source", "split"}
    | {"tags", "task", "timestamp", "type", "url", "uuid"}
)


def unread(columns: dict[str, Any], contents: list[str], metadata: Collection[str], place: str = "") -> list[str]:
    """Those of these columns that have text and are metadata, by METADATA or by `metadata`.

    Raises BadRow for text in another column, unless the messages' `contents` have it too.
    """
    names = []
    for column, value in columns.items():
        texts = [text for text in strings(value) if text and not text.isspace()]
        if not texts:
            continue
        if column in METADATA or column.endswith("_id") or column in metadata:
            names.append(column)
        elif not all(_repeats(text, contents) for text in texts):
            raise BadRow(
                "unread_text",
                f"its `{place}{column}` has text that is in no message. sft.metadata=[{column!r}] leaves it unread",
            )
    return names


def _repeats(text: str, contents: list[str]) -> bool:
    """Is a text part of a message, or all of the messages (as the whole prompt beside its parts)?"""
    if any(text.strip() in content for content in contents):
        return True
    return bool(contents) and all(part in text for content in contents for part in content.split("\n\n"))
