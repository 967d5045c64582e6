"""Letters in names: B batch, T time, D model width."""

import gzip
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.attention import Segments
from model.data import tokenizer as tokenizers
from model.data.batches import Batches
from model.data.conversation import Conversation
from model.data.conversations import conversations
from model.data.document import Flaw
from model.data.packing import pack
from model.data.shards import ShardWriter
from model.errors import KodaError
from model.figures import PackingFigures
from model.files import read_json
from model.llama import Llama

Row = dict[str, Any]


def write_rows(path: Path, rows: list[Row] | str) -> Path:
    text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def read(path: Path, language: str = "") -> list[list[tuple[str, str]]]:
    """Each conversation as (role, content)."""
    items = conversations(str(path), "train", "", language)
    return [[(m["role"], m["content"]) for m in item.messages] for item in items if isinstance(item, Conversation)]


def message(id_: str, parent: str | None, text: str, role: str = "assistant", **more: Any) -> Row:
    return {"message_id": id_, "parent_id": parent, "text": text, "role": role, "lang": "en", **more}


TREES = [
    message("a", None, "Hello?", "prompter"),
    message("a1", "a", "Worse.", rank=1),
    message("a2", "a", "Preferred.", rank=0),
    message("a3", "a", "Not ranked."),
    message("a4", "a", "Removed.", rank=-1, deleted=True),
    message("a21", "a2", "And then?", "prompter"),
    message("a211", "a21", "That was it.", rank=0),
    message("a2111", "a211", "No answer follows.", "prompter"),
    message("b", None, "¿Hola?", "prompter", lang="es"),
    message("b1", "b", "Sí.", rank=0),
]
PATHS = [
    [("user", "Hello?"), ("assistant", "Preferred."), ("user", "And then?"), ("assistant", "That was it.")],
    [("user", "¿Hola?"), ("assistant", "Sí.")],
]


def test_an_oasst_tree_becomes_its_best_path(tmp_path: Path) -> None:
    flat = write_rows(tmp_path / "flat.jsonl.gz", TREES)
    assert read(flat) == PATHS
    assert read(flat, "en") == PATHS[:1]

    def nested(row: Row) -> Row:
        return {**row, "replies": [nested(other) for other in TREES if other["parent_id"] == row["message_id"]]}

    roots = [{"message_tree_id": row["message_id"], "prompt": nested(row)} for row in TREES if not row["parent_id"]]
    assert read(write_rows(tmp_path / "trees.jsonl", roots), "es") == PATHS[1:]


def test_rows_of_messages_and_of_dolly_are_conversations(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}], "id": 7},
        {"instruction": "Sum up.", "context": "It rained.", "response": "Rain.", "category": "x"},
        {"instruction": "Answer yes.", "context": "", "response": "Yes."},
    ]
    assert read(write_rows(tmp_path / "rows.jsonl", rows)) == [
        [("system", "Be kind."), ("user", "Hi")],
        [("user", "Sum up.\n\nIt rained."), ("assistant", "Rain.")],
        [("user", "Answer yes."), ("assistant", "Yes.")],
    ]


BAD = {
    "not json": "not_json",
    '{"instruction": "no answer"}': "no_conversation",
    '["a", "list"]': "not_json",
    '{"messages": [{"role": "robot", "content": "x"}]}': "bad_messages",
    '{"message_id": 1, "text": "hello"}': "no_conversation",
    '{"messages": [{"role": "user", "content": "only a question"}]}': "nothing_to_learn",
}


@pytest.fixture
def packed(tmp_path: Path, tokenizer_file: Path) -> Any:
    def run(source: Path | dict[str, float], length: int = 64, **changes: Any) -> PackingFigures:
        settings = {
            "split": "train",
            "language": "",
            "heldout_fraction": 0.2,
            "too_long": "skip",
            "bad_input": "refuse",
            "train_end": True,
            "metadata": [],
            "text": "",
            "text_share": 0.0,
            **changes,
        }
        weights = source if isinstance(source, dict) else {str(source): 1.0}
        return pack(str(tmp_path / "out"), weights, tokenizer=str(tokenizer_file), sequence_length=length, **settings)

    return run


def dolly(count: int) -> list[Row]:
    return [{"instruction": f"Question {n}?", "context": "", "response": f"Answer {n}."} for n in range(count)]


def test_text_share_of_the_rows_is_text_from_all_over_the_shards(
    tmp_path: Path, tokenizer_file: Path, packed: Any
) -> None:
    writer = ShardWriter(tmp_path / "text", 512, 700)
    for number in range(40):
        writer.add([number] * 100)  # 40 documents in six shards
    writer.close()
    source = write_rows(tmp_path / "rows.jsonl", dolly(60))
    alone = packed(source)
    assert alone.text_rows == 0
    counts = packed(source, text=str(tmp_path / "text"), text_share=0.4)
    batches = Batches(tmp_path / "out/train", batch_size=1, sequence_length=64, seed=0)
    text = [row for row in range(batches.rows) if batches.take(np.array([row])).weights_BT.all()]
    assert counts.text_rows == len(text) == round(0.4 * batches.rows)
    firsts = [int(batches.take(np.array([row])).inputs_BT[0, 0]) for row in text]
    assert firsts == [number * 40 // len(text) for number in range(len(text))]
    everything = packed(source, text=str(tmp_path / "text"), text_share=0.99)
    assert everything.text_rows == 4000 // 65  # the text has no more


def test_packing_keeps_conversations_complete(tmp_path: Path, tokenizer_file: Path, packed: Any) -> None:
    rows = [*dolly(60), {"instruction": "Long?", "response": "word " * 300}]
    counts = packed(write_rows(tmp_path / "rows.jsonl", rows), 160)
    assert counts.too_long == 1 and counts.conversations + counts.heldout_conversations == 60
    vocabulary = tokenizers.load(str(tokenizer_file))
    batches = Batches(tmp_path / "out/train", batch_size=1, sequence_length=160, seed=0)
    answers = 0
    for row in range(batches.rows):
        batch = batches.take(np.array([row]))
        text = vocabulary.tokenizer.decode(batch.inputs_BT[0].tolist(), skip_special_tokens=False)
        assert text.startswith("### User:\nQuestion")
        trained = batch.targets_BT[0][batch.weights_BT[0] > 0].tolist()
        pieces = vocabulary.tokenizer.decode(trained, skip_special_tokens=False).split("<|endoftext|>")
        assert pieces[-1] == "" and all(piece.startswith("Answer") for piece in pieces[:-1])
        for segment in set(batch.segments_BT[0].tolist()):
            ids = batch.inputs_BT[0][batch.segments_BT[0] == segment].tolist()
            content = vocabulary.tokenizer.decode(ids, skip_special_tokens=False)
            assert (content.startswith("### User:") and content.count("### User:") == 1) or set(ids) == {0}
        answers += len(pieces) - 1
    assert answers == counts.conversations


def test_no_conversation_attends_to_another_in_its_row(tmp_path: Path, packed: Any) -> None:
    """The gradient of a conversation's outputs with respect to another's inputs is exactly zero."""
    from dataclasses import replace

    from flax import nnx

    from tests.conftest import SHAPE

    packed(write_rows(tmp_path / "rows.jsonl", dolly(60)), 160)
    batch = Batches(tmp_path / "out/train", batch_size=1, sequence_length=160, seed=0).take(np.array([0]))
    model = Llama(replace(SHAPE, vocab_size=512), rngs=nnx.Rngs(0))
    segments = batch.segments_BT[0]
    assert len(set(segments.tolist())) >= 4

    def output(x_BTD: jax.Array, segment: int) -> jax.Array:
        y_TD = model.hidden(x_BTD, Segments(jnp.asarray(batch.segments_BT)))[0]
        return (y_TD * (segments == segment)[:, None] * jnp.arange(1, y_TD.shape[-1] + 1)).sum()

    x_BTD = model.embed(jnp.asarray(batch.inputs_BT))
    for segment in set(segments.tolist()):
        has_gradient = np.abs(np.asarray(jax.grad(output)(x_BTD, segment)[0])).sum(-1) > 0
        np.testing.assert_array_equal(has_gradient, segments == segment)


@pytest.mark.parametrize("line", BAD)
def test_bad_rows_are_refused_with_their_place_or_counted(tmp_path: Path, packed: Any, line: str) -> None:
    good = "".join(json.dumps(row) + "\n" for row in dolly(30))
    source = write_rows(tmp_path / "rows.jsonl", good + line + "\n")
    with pytest.raises(KodaError, match=rf"rows\.jsonl, byte {len(good)}: .*sft\.bad_input=skip"):
        packed(source)
    counts = packed(source, bad_input="skip")
    assert counts.skipped == {BAD[line]: 1} and counts.conversations + counts.heldout_conversations == 30


def test_a_conversation_that_is_too_long_is_left_out_cut_or_refused(tmp_path: Path, packed: Any) -> None:
    rows = [
        *dolly(30),
        {"instruction": "Long?", "response": "word " * 300},
        {"instruction": "w " * 300, "response": "x"},
    ]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    assert packed(source).too_long == 2
    with pytest.raises(KodaError, match=r"tokens, a row takes 65.*sft\.too_long=skip"):
        packed(source, too_long="refuse")
    with pytest.raises(KodaError, match="no answer in it"):  # cut before its answer begins
        packed(source, too_long="truncate")
    counts = packed(source, too_long="truncate", bad_input="skip")
    assert counts.cut == 2 and counts.skipped == {"nothing_to_learn": 1} and counts.too_long == 0


def test_a_weight_repeats_a_source_or_selects_a_share_of_it(tmp_path: Path, tokenizer_file: Path, packed: Any) -> None:
    one = write_rows(tmp_path / "one.jsonl", dolly(20))
    other = write_rows(
        tmp_path / "other.jsonl", [{"instruction": f"Other {n}?", "response": "Yes."} for n in range(80)]
    )
    packed({str(one): 3.0, str(other): 0.5})
    vocabulary = tokenizers.load(str(tokenizer_file))
    batches = Batches(tmp_path / "out/train", batch_size=1, sequence_length=64, seed=0)
    text = "".join(
        vocabulary.tokenizer.decode(batches.take(np.array([row])).inputs_BT[0].tolist()) for row in range(batches.rows)
    )
    times = [text.count(f"Question {n}?") for n in range(20)]
    heldout = [line["messages"][0]["content"] for line in read_json(tmp_path / "out/prompts.json")]
    assert times == [0 if f"Question {n}?" in heldout else 3 for n in range(20)]
    assert 20 < text.count("Other ") < 45  # half of four fifths of 80


def test_a_common_system_message_does_not_put_all_conversations_in_one_part(tmp_path: Path, packed: Any) -> None:
    system = {"role": "system", "content": "Be kind."}
    talks = [
        {"messages": [system, {"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "Yes."}]}
        for n in range(60)
    ]
    counts = packed(write_rows(tmp_path / "rows.jsonl", talks))
    assert counts.heldout_conversations > 3 and counts.conversations > 30


def test_a_message_that_is_marked_is_not_trained_and_not_asked_for(
    tmp_path: Path, tokenizer_file: Path, packed: Any
) -> None:
    """Rows as they are found: OpenAI's with a `weight`, and a column of metadata."""
    talks = [
        {
            "messages": [
                {"role": "user", "content": f"{n}?"},
                {"role": "assistant", "content": "Wrong.", "weight": 0},
                {"role": "user", "content": "No."},
                {"role": "assistant", "content": "Right.", "weight": 1},
                {"role": "user", "content": "Sure?"},
                {"role": "assistant", "content": "Wrong.", "weight": 0},
            ],
            "category": "x",
        }
        for n in range(40)
    ]
    counts = packed(write_rows(tmp_path / "rows.jsonl", talks), 160)
    assert counts.unread == {"category": 40}
    batches = Batches(tmp_path / "out/train", batch_size=1, sequence_length=160, seed=0)
    batch = batches.take(np.arange(batches.rows))
    trained = tokenizers.load(str(tokenizer_file)).tokenizer.decode(
        batch.targets_BT[batch.weights_BT > 0].tolist(), False
    )
    assert trained == "Right.<|endoftext|>" * counts.conversations
    assert {line["answer"] for line in read_json(tmp_path / "out/prompts.json")} == {"Right."}


@pytest.mark.parametrize("train_end", [True, False])
def test_a_blank_answer_is_never_trained_on(tmp_path: Path, packed: Any, train_end: bool) -> None:
    rows = [*dolly(30), {"instruction": "Say 1", "context": "", "response": "  \n"}]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(KodaError, match=r"byte \d+: its answer is blank"):
        packed(source, train_end=train_end)
    counts = packed(source, train_end=train_end, bad_input="skip")
    assert counts.skipped == {"nothing_to_learn": 1} and counts.conversations + counts.heldout_conversations == 30


def test_what_needs_no_fix_is_counted_and_not_refused(tmp_path: Path, packed: Any) -> None:
    trees = [
        row
        for n in range(30)
        for row in (message(f"{n}", None, f"{n}?", "prompter"), message(f"{n}a", f"{n}", "Yes.", rank=0))
    ]
    lost = [message("x", "nowhere", "Lost."), message("y", None, "Hm?", "prompter", deleted=True)]
    counts = packed(write_rows(tmp_path / "rows.jsonl", [*trees, *lost]))
    assert counts.skipped == {"orphan": 1, "deleted": 1}


def test_no_conversation_at_all_is_refused_with_every_count(tmp_path: Path, packed: Any) -> None:
    rows = [{"instruction": "?", "response": ""}, {"x": 1}, {"instruction": "?" * 200, "response": "!"}]
    source, counts = write_rows(tmp_path / "rows.jsonl", rows), "2 left out as nothing_to_learn, 1 left out as no_conv"
    with pytest.raises(KodaError, match=rf"has 0 .*0 were longer than .* 1 were cut to it, {counts}"):
        packed(source, bad_input="skip", too_long="truncate")


def test_flaws_name_their_place(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", '{"instruction": "a", "response": "b"}\n{"x": 1}\n')
    flaws = [item for item in conversations(str(source), "train", "", "") if isinstance(item, Flaw)]
    assert [flaw.name for flaw in flaws] == [f"{source}, byte 38"]
