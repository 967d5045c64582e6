"""Rows with a list of messages: `messages` as of OpenAI's API, and `conversations` of ShareGPT.

    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello.", "weight": 1}]}
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}

The keys of either are read in both lists. A content is a string, or a list of parts of type `text`.
"""

from collections.abc import Collection
from typing import Any

from model.data.columns import unread
from model.data.conversation import MARKS, BadRow, Turn, learned

ROLES = {
    "system": "system",
    "developer": "system",  # OpenAI's later name for it
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}


def read(messages: Any, column: str, metadata: Collection[str]) -> list[Turn]:
    """The turns in a list of messages, the content of `column`. Raises BadRow."""
    if not isinstance(messages, list):
        raise BadRow("bad_messages", f"its `{column}` is {type(messages).__name__}, not a list of messages")
    return [_turn(message, f"{column}[{number}]", metadata) for number, message in enumerate(messages)]


def _turn(message: Any, place: str, metadata: Collection[str]) -> Turn:
    if not isinstance(message, dict):
        raise BadRow("bad_messages", f"its `{place}` is {type(message).__name__}, not a message of role and content")
    for calls in ("tool_calls", "function_call"):
        if message.get(calls):
            raise BadRow("unread_text", f"its `{place}.{calls}` is not read: there is no form for calls of tools")
    role_key, content_key = _key(message, "role", "from", place), _key(message, "content", "value", place)
    role, content = message[role_key], _content(message[content_key], place)
    if not isinstance(role, str) or role not in ROLES:
        raise BadRow("bad_messages", f"the role in `{place}` is {role!r}; {', '.join(ROLES)} are read")
    others = {key: value for key, value in message.items() if key not in {role_key, content_key, *MARKS}}
    names = tuple(unread(others, [content], metadata, f"{place}."))
    return Turn(ROLES[role], content, learned(message, f"{place}.", metadata), names)


def _key(message: dict[str, Any], one: str, other: str, place: str) -> str:
    """The one of two keys that the message has."""
    key = one if message.get(one) is not None else other
    if message.get(key) is None:
        raise BadRow("bad_messages", f"its `{place}` has neither {one} nor {other}, only {', '.join(sorted(message))}")
    return key


def _content(value: Any, place: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise BadRow("bad_messages", f"the content of `{place}` is {type(value).__name__}, not a string")
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise BadRow("bad_messages", f"the content of `{place}` has a part of type {kind!r}; only `text` is read")
    return "".join(part["text"] for part in value)
