"""Each form of rows, as it is found, is read rightly or refused with the name of what is not read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from model.data import conversations as module
from model.data.conversation import Conversation
from model.data.conversations import FORMS, conversations
from model.data.document import COUNTED, Flaw

Row = dict[str, Any]
HI, HELLO = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}
PAIR = [("user", "Hi"), ("assistant", "Hello.")]


def items(rows: list[Row], folder: Path, *metadata: str, language: str = "") -> list[Conversation | Flaw]:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(conversations(str(folder / "rows.jsonl"), "train", "", language, metadata))


def only(row: Row, folder: Path, *metadata: str) -> Conversation:
    (item,) = items([row], folder, *metadata)
    assert isinstance(item, Conversation), item
    return item


def flaw(row: Row, folder: Path) -> tuple[str, str]:
    """The reason and the detail."""
    (item,) = items([row], folder)
    assert isinstance(item, Flaw) and item.name.endswith("rows.jsonl, byte 0")
    return item.reason, item.detail


def turns(item: Conversation) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in item.messages]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [HI, HELLO]},
        {"instruction": "Hi", "context": "", "response": "Hello."},
        {"instruction": "Hi", "input": "", "output": "Hello."},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]},
        {"conversations": [HI, HELLO]},
        {"messages": [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Hello."}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]},
                HELLO,
            ]
        },
        {"messages": [HI, {**HELLO, "tool_calls": None, "name": "", "weight": 1}], "tools": []},
        {"messages": [HI, HELLO], "system": None, "history": [], "score": 0.5},
        # Text that the messages have is not lost where another column repeats it.
        {"prompt": "Hi", "messages": [HI, HELLO]},
        {"instruction": "Hi", "input": "", "output": "Hello.", "text": "### Instruction:\nHi\n\n### Response:\nHello."},
        {
            "instruction": "Hi",
            "output": "Hello.",
            "text": "Below is an instruction that describes a task. Write a response that appropriately completes the "
            "request.\n\n### Instruction:\nHi\n\n### Response:\nHello.",
        },
        {"messages": [HI, HELLO], "text": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>"},
        {"messages": [HI, HELLO], "text": "<s>[INST] Hi [/INST] Hello. </s>", "prompt": "USER: Hi ASSISTANT:"},
        {"messages": [HI, {**HELLO, "content": "Hello.\x1a"}]},  # DOS's end of a file
    ],
)
def test_forms_of_one_conversation_are_read_the_same(tmp_path: Path, row: Row) -> None:
    item = only(row, tmp_path)
    assert turns(item) == PAIR and item.unlearned == frozenset() and item.unread == ()


@pytest.mark.parametrize(("context", "answer"), [("context", "response"), ("input", "output"), ("input", "response")])
def test_the_context_joins_the_question(tmp_path: Path, context: str, answer: str) -> None:
    row = {"instruction": "Sum up.", context: "It rained.", answer: "Rain."}
    assert turns(only(row, tmp_path)) == [("user", "Sum up.\n\nIt rained."), ("assistant", "Rain.")]


def test_system_and_history_come_before_the_question(tmp_path: Path) -> None:
    row = {"system": "Be kind.", "history": [["1?", "One."]], "instruction": "Hi", "response": "Hello."}
    first = [("system", "Be kind.")]
    assert turns(only(row, tmp_path)) == [*first, ("user", "1?"), ("assistant", "One."), *PAIR]
    for system in ({"role": "system", "content": "Be kind."}, {"role": "developer", "content": "Be kind."}):
        assert turns(only({"messages": [system, HI, HELLO]}, tmp_path)) == [*first, *PAIR]
        assert turns(only({"messages": [system, HI, HELLO], "system": "Be kind. "}, tmp_path)) == [*first, *PAIR]
    assert turns(only({"messages": [HI, HELLO], "system": "Be kind."}, tmp_path)) == [*first, *PAIR]


@pytest.mark.parametrize(
    "mark",
    [
        {"weight": 0},
        {"weight": 0.0},
        {"train": False},
        {"train": True, "weight": 0},
        {"training": False},
        {"train_on_turn": False},
        {"loss": False},
    ],
)
def test_a_message_that_is_marked_is_not_learned(tmp_path: Path, mark: Row) -> None:
    wrong = {"role": "assistant", "content": "WRONG", **mark}
    assert only({"messages": [HI, wrong, HI, HELLO]}, tmp_path).unlearned == {1}
    assert only({"messages": [HI, HELLO], **mark}, tmp_path).unlearned == {1}  # of a whole row
    assert only({"instruction": "Hi", "response": "Hello.", **mark}, tmp_path).unlearned == {1}
    blank = {"role": "assistant", "content": "", **mark}
    assert only({"messages": [HI, blank, HI, HELLO]}, tmp_path).unlearned == {1}


REFUSED: list[tuple[Row, str, str]] = [
    ({"instruction": "Hi", "response": "Hello.", "hint": "Think."}, "unread_text", "its `hint` has text"),
    ({"instruction": "Hi", "response": "Hello.", "hints": [{"a": "Think."}]}, "unread_text", "its `hints` has text"),
    ({"messages": [HI, HELLO], "rejected": [HI, {**HELLO, "content": "No."}]}, "unread_text", "`rejected`"),
    ({"messages": [HI, HELLO], "tools": '[{"name": "search"}]'}, "unread_text", "`tools`"),
    ({"conversations": [HI, HELLO], "instruction": "Else."}, "unread_text", "`instruction`"),
    # Text that has all messages in it, and more.
    ({"instruction": "2+2", "output": "4", "hint": "2+2 means two and two, which is 4."}, "unread_text", "`hint`"),
    ({"messages": [{**HI, "content": "a"}, {**HELLO, "content": "e"}], "text": "a sea"}, "unread_text", "`text`"),
    ({"messages": [HI, HELLO], "text": "You are a pirate. Hi Hello."}, "unread_text", "`text`"),
    ({"messages": [HI, HELLO], "text": "Response:"}, "unread_text", "`text`"),
    ({"messages": [HI, HELLO], "\ud83d": "Else."}, "unread_text", "its `\\ud83d` has text"),
    ({"messages": [HI, {**HELLO, "mask": 1}]}, "unclear_mark", "its `messages[1].mask` is 1"),
    ({"messages": [HI, HELLO], "label": False}, "unclear_mark", "its `label` is False"),
    (
        {"messages": [HI, {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}]},
        "unread_text",
        "`messages[1].tool_calls`",
    ),
    ({"messages": [HI, {**HELLO, "function_call": {"name": "f"}}]}, "unread_text", "`messages[1].function_call`"),
    ({"messages": [HI, {**HELLO, "reasoning_content": "Hm."}]}, "unread_text", "`messages[1].reasoning_content`"),
    ({"messages": [HI, {**HELLO, "value": "Else."}]}, "unread_text", "`messages[1].value`"),
    (
        {"messages": [HI, {"role": "tool", "content": "4"}, HELLO]},
        "bad_messages",
        "the role in `messages[1]` is 'tool'",
    ),
    ({"conversations": [{"from": "observation", "value": "4"}]}, "bad_messages", "`conversations[0]` is 'observation'"),
    ({"messages": [{"role": ["user"], "content": "Hi"}]}, "bad_messages", "the role in `messages[0]` is ['user']"),
    ({"messages": [HI, {"role": "assistant"}]}, "bad_messages", "`messages[1]` has neither content nor value"),
    ({"messages": [HI, {"content": "Hello."}]}, "bad_messages", "`messages[1]` has neither role nor from"),
    ({"messages": "Hi"}, "bad_messages", "`messages` is str"),
    ({"messages": ["Hi"]}, "bad_messages", "`messages[0]` is str"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, HELLO]},
        "bad_messages",
        "`messages[0]` has a part of type 'image_url'",
    ),
    ({"messages": [{"role": "user", "content": {"text": "Hi"}}, HELLO]}, "bad_messages", "`messages[0]` is dict"),
    ({"messages": [HI, {**HELLO, "weight": 0.5}]}, "bad_weight", "`messages[1].weight` is 0.5"),
    ({"messages": [HI, HELLO], "train": "no"}, "bad_weight", "`train` is 'no'"),
    ({"messages": [HI, HELLO], "loss": 0.53}, "bad_weight", "`loss` is 0.53"),
    ({"messages": [{**HI, "role": "system"}, HELLO], "system": "Else."}, "bad_messages", "its `system` differs"),
    ({"messages": [HI, HELLO], "system": ["x"]}, "no_conversation", "its `system` is list"),
    ({"instruction": "Hi", "response": "Hello.", "output": "Else."}, "no_conversation", "both `response` and `output`"),
    ({"instruction": "Hi", "response": 7}, "no_conversation", "its `response` is int"),
    ({"instruction": " ", "response": "Hello."}, "no_conversation", "`instruction` is blank"),
    ({"instruction": "Hi", "history": ["1?"], "response": "Hello."}, "no_conversation", "`history[0]`"),
    ({"instruction": "Hi", "history": "1?", "response": "Hello."}, "no_conversation", "`history`"),
    ({"message_id": "a", "text": "Hi", "role": ["prompter"]}, "no_conversation", "it has message_id, role, text"),
    ({"question": "Hi", "answer": "Hello."}, "no_conversation", "it has answer, question"),
    ({"question": "Hi", "\ud83d": "Hello."}, "no_conversation", "it has question, \\ud83d"),
    ({"instruction": "Hi", "\ud83d": "Hello."}, "no_conversation", "only instruction, \\ud83d"),
    ({"messages": [{"role": "user", "\ud83d": "Hi"}]}, "bad_messages", "only role, \\ud83d"),
    ({"instruction": "Hi", "response": "  \n"}, "nothing_to_learn", "its answer is blank (message 1)"),
    ({"instruction": "Hi", "input": "", "output": ""}, "nothing_to_learn", "its answer is blank"),
    ({"messages": [HI, HELLO, HI, {**HELLO, "content": ""}]}, "nothing_to_learn", "its answer is blank (message 3)"),
    ({"messages": [HI, {**HELLO, "content": []}]}, "nothing_to_learn", "its answer is blank (message 1)"),
    ({"instruction": "half \ud83d", "response": "Hello."}, "lone_surrogate", "in message 0, character 5"),
    ({"messages": [HI, {**HELLO, "content": "\udc00"}]}, "lone_surrogate", "in message 1, character 0"),
    ({"instruction": "Hi\0", "response": "Hello."}, "not_text", "in message 0, character 2 is the control"),
    ({"messages": [HI, {**HELLO, "content": "\x1aHello."}]}, "not_text", "in message 1, character 0"),
]


@pytest.mark.parametrize(("row", "reason", "detail"), REFUSED)
def test_what_is_not_read_is_named(tmp_path: Path, row: Row, reason: str, detail: str) -> None:
    actual = flaw(row, tmp_path)
    assert actual[0] == reason and detail in actual[1]
    assert reason not in COUNTED


def test_metadata_is_left_unread_and_recorded(tmp_path: Path) -> None:
    row = {"messages": [{**HI, "id": "m1"}, HELLO], "category": "x", "prompt_id": "7", "hint": "Think.", "url": ""}
    assert only(row, tmp_path, "hint").unread == ("category", "prompt_id", "hint", "id")
    row = {"messages": [{**HI, "mask": 1}, {**HELLO, "loss": 0.53}], "\ud83d_id": "7", "label": 2}
    item = only(row, tmp_path, "mask", "label", "loss")
    assert item.unread == ("\\ud83d_id", "label", "mask") and not item.unlearned


def test_parquet_fills_missing_columns_with_nothing(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Hi", "response": "Hello.", "messages": None},
        {"instruction": None, "response": None, "messages": [{**HI, "weight": None}, {**HELLO, "weight": 0}]},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    read = list(conversations(str(tmp_path / "rows.parquet"), "train", "", ""))
    assert [turns(item) for item in read if isinstance(item, Conversation)] == [PAIR, PAIR]
    assert [item.unlearned for item in read if isinstance(item, Conversation)] == [frozenset(), {1}]


def test_the_documentation_of_conversations_names_every_form() -> None:
    text = (Path(module.__file__).parents[2] / "docs/text.md").read_text()
    assert all(f"`{column}`" in text for column in FORMS)


def message(id_: str, parent: Any, text: str, role: str = "assistant", **more: Any) -> Row:
    return {"message_id": id_, "parent_id": parent, "text": text, "role": role, "lang": "en", **more}


ROOT = message("a", None, "Hi", "prompter")


@pytest.mark.parametrize("nothing", [None, float("nan"), ""])
def test_a_tree_begins_where_there_is_no_parent_and_no_rank_comes_last(tmp_path: Path, nothing: Any) -> None:
    """Tables of pandas have NaN in both columns, and in `deleted`."""
    rank = float("nan") if nothing == "" else nothing
    tree = [
        message("a", nothing, "Hi", "prompter", deleted=rank),
        message("b", "a", "Not ranked.", rank=rank),
        message("c", "a", "Hello.", rank=0, deleted=rank),
        message("d", "a", "Worse.", rank=1),
    ]
    assert [turns(item) for item in items(tree, tmp_path) if isinstance(item, Conversation)] == [PAIR]


@pytest.mark.parametrize("as_written", [str, lambda value: str(value).lower(), float])
def test_ranks_and_marks_may_be_strings(tmp_path: Path, as_written: Callable[[Any], Any]) -> None:
    """As tables have them that were written as CSV."""
    tree = [
        message("a", None, "Hi", "prompter", deleted=as_written(False)),
        message("b", "a", "Worse.", rank=as_written(2)),
        message("c", "a", "Hello.", rank=as_written(1)),
        message("d", "a", "Deleted.", rank=as_written(0), deleted=as_written(True)),
    ]
    assert [turns(item) for item in items(tree, tmp_path) if isinstance(item, Conversation)] == [PAIR]


@pytest.mark.parametrize(("key", "value"), [("rank", "best"), ("rank", [0]), ("deleted", "yes"), ("deleted", 2)])
def test_rank_or_mark_that_cannot_be_read_is_a_flaw(tmp_path: Path, key: str, value: Any) -> None:
    """What replies to it has no way to the root."""
    reply = message("b", "a", "No.", **{key: value}, replies=[message("d", "b", "Lost.", "prompter")])
    bad, read, lost = items([ROOT, reply, message("c", "a", "Hello.", rank=7)], tmp_path)
    assert isinstance(bad, Flaw) and (bad.reason, bad.name[-1]) == ("bad_messages", "b")
    assert f"its `{key}` is {value!r}, n" in bad.detail
    assert isinstance(read, Conversation) and turns(read) == PAIR
    assert isinstance(lost, Flaw) and (lost.reason, lost.name[-1]) == ("orphan", "d")


def reasons(rows: list[Row], folder: Path) -> list[tuple[str, str]]:
    return [(item.reason, item.name.rpartition(" ")[2]) for item in items(rows, folder) if isinstance(item, Flaw)]


def test_messages_that_are_in_no_tree_are_counted(tmp_path: Path) -> None:
    tree = [ROOT, message("b", "a", "Hello.", rank=0)]
    assert reasons([{**ROOT, "deleted": True}, tree[1]], tmp_path) == [("deleted", "a")]
    assert reasons([*tree, message("c", "nowhere", "Lost."), message("d", "c", "Lost too.")], tmp_path) == [
        ("orphan", "c"),
        ("orphan", "d"),
    ]
    assert reasons([*tree, *tree], tmp_path) == [("repeated", "a"), ("repeated", "b")]
    assert {"deleted", "orphan", "repeated"} < COUNTED


def test_messages_that_reply_to_each_other_are_a_flaw(tmp_path: Path) -> None:
    tree = [ROOT, message("b", "a", "Hello.", rank=0)]
    assert reasons([*tree, message("c", "c", "Me.")], tmp_path) == [("cycle", "c")]
    ring = [message("c", "e", "1."), message("d", "c", "2."), message("e", "d", "3."), message("f", "e", "4.")]
    assert reasons([*tree, *ring], tmp_path) == [("cycle", name) for name in "cdef"]
    again = message("a", "b", "Hi", "prompter")  # a message that would be below itself
    assert reasons([*tree, again], tmp_path) == [("repeated", "a")]
    assert "cycle" not in COUNTED


def test_a_deep_tree_is_read(tmp_path: Path) -> None:
    chain = [ROOT, *(message(str(n), str(n - 1) if n else "a", "On.") for n in range(5000))]
    (item,) = items(chain, tmp_path)
    assert isinstance(item, Conversation) and len(item.messages) == 5001
