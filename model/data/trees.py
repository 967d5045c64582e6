"""OASST's trees of messages (Köpf et al. 2023, arXiv:2304.07327), flat as on the Hub or nested as in `.trees.jsonl`.

    {"message_id": "a", "parent_id": null, "role": "prompter", "text": "Hello?", "lang": "en"}
    {"message_id": "b", "parent_id": "a", "role": "assistant", "text": "Hello.", "rank": 0, "deleted": false}

Of each tree, the path along the replies that people ranked best is a conversation.
"""

from collections.abc import Iterator
from typing import Any

from model.data.conversation import Conversation, Turn, conversation
from model.data.document import DELETED, ORPHAN, REPEATED, Flaw

ROLES = {"prompter": "user", "assistant": "assistant"}  # OASST's, and ours
Message = dict[str, Any]


def is_message(value: Any) -> bool:
    """Is this a message of OASST's, and are all messages nested in it?"""
    pending = [value]
    while pending:
        message = pending.pop()
        if not (
            isinstance(message, dict)
            and isinstance(message.get("message_id"), str)
            and isinstance(message.get("text"), str)
            and message.get("role") in (*ROLES,)
            and isinstance(message.get("replies") or [], list)
        ):
            return False
        pending += message.get("replies") or ()
    return True


class Trees:
    """Messages from rows in any order, by their parents."""

    def __init__(self, source: str):
        self.source = source
        self._messages: dict[str, Message] = {}  # by id
        self._parents: dict[str, str] = {}  # by id; "" for roots
        self._replies: dict[str, list[str]] = {}  # ids by the parent's; "" for roots
        self._flaws: list[Flaw] = []

    def add(self, message: Message) -> None:
        """Add a message and those nested in it."""
        pending = [(message, _parent(message))]
        while pending:
            node, parent = pending.pop()
            id_ = node["message_id"]
            if id_ in self._messages:
                self._flaws.append(Flaw(self._name(id_), REPEATED, "there was a message of this id before"))
                continue
            pending += [(reply, id_) for reply in reversed(node.get("replies") or ())]
            if detail := _unreadable(node):
                self._flaws.append(Flaw(self._name(id_), "bad_messages", detail))
                continue
            self._messages[id_], self._parents[id_] = node, parent
            self._replies.setdefault(parent, []).append(id_)

    def conversations(self, language: str) -> Iterator[Conversation | Flaw]:
        """The best path of each tree in `language` (empty: of all), and the flaws of messages that are in no tree."""
        yield from self._flaws
        for id_ in self._replies.get("", ()):
            root = self._messages[id_]
            if language and root.get("lang") != language:
                continue
            if _is_deleted(root):
                yield Flaw(self._name(id_), DELETED, "its first message was deleted")
            else:
                yield conversation(self._name(id_), self._best_path(id_))
        yield from self._without_root()

    def _best_path(self, id_: str) -> list[Turn]:
        """From the root along the replies that people ranked best (rank 0), down to the last answer."""
        path, next_ = list[Turn](), id_
        while next_:
            message = self._messages[next_]
            path.append(Turn(ROLES[message["role"]], message["text"]))
            replies = [reply for reply in self._replies.get(next_, ()) if not _is_deleted(self._messages[reply])]
            next_ = min(replies, key=lambda reply: _rank(self._messages[reply]), default="")
        while path and path[-1].role != "assistant":
            path.pop()
        return path

    def _without_root(self) -> Iterator[Flaw]:
        """Messages from which no chain of parents leads to a root."""
        rooted, pending = set[str](), [*self._replies.get("", ())]
        while pending:
            rooted.add(id_ := pending.pop())
            pending += self._replies.get(id_, ())
        yield from (self._rootless(id_) for id_ in self._messages if id_ not in rooted)

    def _rootless(self, id_: str) -> Flaw:
        chain = [id_]
        while (parent := self._parents[chain[-1]]) in self._messages:
            if parent in chain:
                return Flaw(self._name(id_), "cycle", f"its parents are a cycle: {parent} is a reply to itself")
            chain.append(parent)
        return Flaw(self._name(id_), ORPHAN, f"there is no message {parent}, to which it belongs")

    def _name(self, id_: str) -> str:
        return f"{self.source}, message {id_}"


def _parent(message: Message) -> str:
    """The parent's id; empty for a root. Tables of pandas have NaN where there is none."""
    parent = message.get("parent_id")
    return "" if parent is None or parent != parent else str(parent)


def _unreadable(message: Message) -> str:
    """What is wrong with a message's rank or its mark `deleted`; empty if nothing is."""
    try:
        _rank(message)
    except (TypeError, ValueError):
        return f"its `rank` is {message['rank']!r}, not a number"
    try:
        if _number(message.get("deleted")) in (0, 1, None):
            return ""
    except (TypeError, ValueError):
        pass
    return f"its `deleted` is {message['deleted']!r}, neither true nor false"


def _rank(message: Message) -> float:
    """0 is the best; what has no rank comes after all that have one."""
    rank = _number(message.get("rank"))
    return float("inf") if rank is None else rank


def _is_deleted(message: Message) -> bool:
    return _number(message.get("deleted")) == 1


def _number(value: Any) -> float | None:
    """A number or a truth value, which may be written as a string; None where there is none, or NaN."""
    if isinstance(value, str):
        value = {"": None, "false": 0, "true": 1}.get(value.lower(), value)
    number = None if value is None else float(value)
    return None if number != number else number
