"""A conversation: what every form of rows is read as."""

from collections.abc import Collection, Iterable
from typing import NamedTuple

from model.data.chat import Message
from model.data.decoding import without_end_of_file
from model.data.document import printable

# What marks a message, or all messages of a row, as learned or not.
MARKS = frozenset({"weight", "train", "training", "train_on_turn", "loss"})


class Turn(NamedTuple):
    """A message, and whether the model should learn it where it is the assistant's."""

    role: str  # system, user or assistant
    content: str
    learned: bool = True
    unread: tuple[str, ...] = ()  # keys of the message whose text is no part of it


class Conversation(NamedTuple):
    """Messages, and where they come from."""

    name: str
    messages: list[Message]
    unlearned: frozenset[int] = frozenset()  # numbers of the assistant's messages that are read and not learned
    unread: tuple[str, ...] = ()  # columns and keys whose text is no part of the conversation


class BadRow(Exception):
    """A row that cannot be read as a conversation: a reason to count it by, and the detail."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def conversation(name: str, turns: list[Turn], unread: Iterable[str] = ()) -> Conversation:
    """The conversation that has these turns, from a row with columns that are `unread`."""
    messages = [{"role": turn.role, "content": without_end_of_file(turn.content)} for turn in turns]
    unlearned = (n for n, turn in enumerate(turns) if turn.role == "assistant" and not turn.learned)
    names = dict.fromkeys(map(printable, [*unread, *(key for turn in turns for key in turn.unread)]))
    return Conversation(printable(name), messages, frozenset(unlearned), tuple(names))


def learned(row: dict[str, object], place: str, metadata: Collection[str]) -> bool:
    """Do the MARKS of a row or of a message leave it to be learned? Raises BadRow for other values."""
    marks = {key: value for key, value in row.items() if key in MARKS and key not in metadata and value is not None}
    for key, value in marks.items():
        if value not in (0, 1):  # False and True as well
            raise BadRow(
                "bad_weight",
                f"`{place}{key}` is {value!r}: a message is learned (1, true) or not (0, false). "
                f"sft.metadata=[{key!r}] leaves it unread",
            )
    return all(marks.values())
