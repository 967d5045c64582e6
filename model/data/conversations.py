"""Conversations to train on: `sft.source`, read by its form and its columns.

A row is one of `messages` (`[{"role": "user", "content": …}, …]`), Dolly's columns (`instruction`, `context`,
`response`; Conover et al. 2023), or a message of OASST's trees (Köpf et al. 2023, arXiv:2304.07327), flat as on the Hub
or nested as in its `.trees.jsonl`.
"""

import hashlib
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from model.data import docs, hub, readers, sources
from model.data.chat import Message
from model.data.document import Flaw
from model.data.readers import Row
from model.files import sha256

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
QUESTIONS = ("What does `{}` do?", "What is `{}` for?", "Explain `{}`.", "Tell me about `{}`.")
SENTENCE = re.compile(r"(?s)^(.{20,240}?[.!?])(?:\s|$)")
ROLES = {"prompter": "user", "assistant": "assistant"}  # OASST's, and ours


class Conversation(NamedTuple):
    """Messages, and where they come from."""

    name: str
    messages: list[Message]


def fingerprint(source: str) -> str:
    """A string that changes with the conversations of a source; empty for the Hub."""
    if source == "docs":
        return f"python {sys.version}"
    if sources.is_hub(source):
        hub.named(source)
        return ""
    return " ".join(sha256(path) for path in sources.files(source, SUFFIXES, "sft.source"))


def conversations(source: str, split: str, commit: str, language: str) -> Iterator[Conversation | Flaw]:
    """The conversations of a source (of a Hub data set, at `commit`), and its flaws.

    Of OASST's trees, those in `language`; all if it is empty.
    """
    if source == "docs":
        yield from _from_docs()
        return
    trees: dict[str, list[dict[str, Any]]] = {}  # OASST's messages by their parent's id; "" for roots
    for item in _rows(source, split, commit):
        if isinstance(item, Flaw):
            yield item
            continue
        name, row = item
        if _is_tree_message(row):
            trees.setdefault(row.get("parent_id") or "", []).append(row)
        elif _is_tree_message(row.get("prompt")):
            _unfold(row["prompt"], "", trees)
        else:
            yield _from_row(name, row)
    for root in trees.get("", []):
        if not language or root.get("lang") == language:
            yield Conversation(f"{source}, tree {root['message_id']}", _best_path(root, trees))


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
                yield Conversation(entry.name, _pair(question, sentence[1]))


def _from_row(name: str, row: dict[str, Any]) -> Conversation | Flaw:
    """The conversation in a row of `messages` or of Dolly's columns, or a flaw."""
    if "messages" in row:
        messages = row["messages"]
        if not isinstance(messages, list) or not all(map(_is_message, messages)):
            roles = "system, user and assistant"
            return Flaw(name, "bad_messages", f"its `messages` are not a list of {{role, content}}, with {roles}")
        return Conversation(name, [{"role": m["role"], "content": m["content"]} for m in messages])
    question, answer, context = row.get("instruction"), row.get("response"), row.get("context") or ""
    if not all(isinstance(part, str) for part in (question, answer, context)):
        form = "neither `messages`, nor `instruction` and `response`, nor a message of a tree"
        return Flaw(name, "no_conversation", f"the row has {form}; it has {', '.join(sorted(row)) or 'nothing'}")
    return Conversation(name, _pair(f"{question}\n\n{context}" if context else str(question), str(answer)))


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and message.get("role") in ("system", "user", "assistant")
        and isinstance(message.get("content"), str)
    )


def _is_tree_message(message: Any) -> bool:
    """Is this a message of OASST's, and are all messages nested in it?"""
    return (
        isinstance(message, dict)
        and isinstance(message.get("message_id"), str)
        and isinstance(message.get("text"), str)
        and message.get("role") in ROLES
        and all(map(_is_tree_message, message.get("replies") or ()))
    )


def _unfold(message: dict[str, Any], parent: str, trees: dict[str, list[dict[str, Any]]]) -> None:
    """Add a nested message and its replies to `trees`, by their parent's id."""
    trees.setdefault(parent, []).append(message)
    for reply in message.get("replies") or ():
        _unfold(reply, message["message_id"], trees)


def _best_path(root: dict[str, Any], trees: dict[str, list[dict[str, Any]]]) -> list[Message]:
    """From the root along the replies that people ranked best (rank 0), down to the last answer."""
    path: list[Message] = []
    node: dict[str, Any] | None = root
    while node is not None:
        path.append({"role": ROLES[node["role"]], "content": node["text"]})
        replies = [reply for reply in trees.get(node["message_id"], []) if not reply.get("deleted")]
        unranked = len(replies)
        node = min(replies, key=lambda m: unranked if m.get("rank") is None else m["rank"], default=None)
    while path and path[-1]["role"] != "assistant":
        path.pop()
    return path


def _pair(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
