"""Conversations to learn from, whatever form they come in: `sft.source`, told apart by its form and its columns.

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
    """Messages, and where they came from."""

    name: str
    messages: list[Message]


def fingerprint(source: str) -> str:
    """What the conversations depend on."""
    if source == "docs":
        return f"python {sys.version}"
    if sources.is_hub(source):
        hub.named(source)
        return ""
    return " ".join(sha256(path) for path in sources.files(source, SUFFIXES, "sft.source"))


def conversations(source: str, split: str, commit: str, language: str) -> Iterator[Conversation | Flaw]:
    """The conversations of a source (of a Hub data set, as it was at `commit`); of OASST's trees, if `language` is
    given, those in it."""
    if source == "docs":
        yield from _from_docs()
        return
    trees: dict[str, list[dict[str, Any]]] = {}  # OASST's messages by the one they answer; "" for those that begin
    for found in _rows(source, split, commit):
        if isinstance(found, Flaw):
            yield found
            continue
        name, row = found
        if _is_of_a_tree(row):
            trees.setdefault(row.get("parent_id") or "", []).append(row)
        elif _is_of_a_tree(row.get("prompt")):
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
    """The standard library's own answers: what a documented thing does, in the first sentence of its docstring."""
    for name, path in docs.modules(frozenset({"stdlib"})):
        for entry in docs.entries(name, path):
            found = SENTENCE.match(" ".join(entry.text.split("\n\n")[0].split()))
            if found and not any(part.startswith("_") for part in entry.name.split(".")):
                digest = hashlib.sha256(entry.name.encode()).digest()
                question = QUESTIONS[digest[0] % len(QUESTIONS)].format(entry.name)
                yield Conversation(entry.name, _pair(question, found[1]))


def _from_row(name: str, row: dict[str, Any]) -> Conversation | Flaw:
    """A row of `messages`, or of Dolly's columns."""
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


def _is_of_a_tree(message: Any) -> bool:
    """Is this a message of OASST's, with all that are nested in it?"""
    return (
        isinstance(message, dict)
        and isinstance(message.get("message_id"), str)
        and isinstance(message.get("text"), str)
        and message.get("role") in ROLES
        and all(map(_is_of_a_tree, message.get("replies") or ()))
    )


def _unfold(message: dict[str, Any], parent: str, trees: dict[str, list[dict[str, Any]]]) -> None:
    """A nested tree as the flat messages it is made of."""
    trees.setdefault(parent, []).append(message)
    for reply in message.get("replies") or ():
        _unfold(reply, message["message_id"], trees)


def _best_path(root: dict[str, Any], trees: dict[str, list[dict[str, Any]]]) -> list[Message]:
    """From the root along the reply that people ranked best (rank 0), down to the last answer."""
    path: list[Message] = []
    at: dict[str, Any] | None = root
    while at is not None:
        path.append({"role": ROLES[at["role"]], "content": at["text"]})
        replies = [reply for reply in trees.get(at["message_id"], []) if not reply.get("deleted")]
        unranked = len(replies)
        at = min(replies, key=lambda m: unranked if m.get("rank") is None else m["rank"], default=None)
    while path and path[-1]["role"] != "assistant":
        path.pop()
    return path


def _pair(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
