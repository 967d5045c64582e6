from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from model.data import chat, instructions
from model.data import tokenizer as tokenizers
from model.data.batches import Batches
from model.errors import KodaError

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  What is two and two?\n"},
    {"role": "assistant", "content": "Four.  "},
    {"role": "user", "content": "And three?"},
    {"role": "assistant", "content": "Five, or so I hear."},
]


def test_only_answers_and_their_ends_are_trained(tokenizer_file: Path) -> None:
    tokenizer = tokenizers.load(str(tokenizer_file))
    ids, trained = chat.encode(tokenizer, TALK)
    learned = tokenizer.decode([i for i, t in zip(ids, trained, strict=True) if t], skip_special_tokens=False)
    rest = tokenizer.decode([i for i, t in zip(ids, trained, strict=True) if not t], skip_special_tokens=False)
    assert learned == "Four.<|endoftext|>Five, or so I hear.<|endoftext|>"
    assert rest == (
        "### System:\nBe brief.\n\n### User:\nWhat is two and two?\n\n### Assistant:\n"
        "### User:\nAnd three?\n\n### Assistant:\n"
    )


def test_the_tokens_are_those_of_transformers(tokenizer_file: Path) -> None:
    """What is trained on, and what is asked with, is what apply_chat_template gives."""
    tokenizer = tokenizers.load(str(tokenizer_file))
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file), eos_token=tokenizers.END_OF_TEXT)
    theirs.chat_template = chat.TEMPLATE
    for talk in (
        TALK,
        [{"role": "user", "content": "1\n\n2  \t3 — ¿é? 👍"}, {"role": "assistant", "content": "- x\n- y"}],
    ):
        assert chat.encode(tokenizer, talk).ids == theirs.apply_chat_template(talk, return_dict=False)
        assert chat.encode_prompt(tokenizer, talk[:-1]) == theirs.apply_chat_template(
            talk[:-1], add_generation_prompt=True, return_dict=False
        )


def test_a_message_cannot_end_the_answer(tokenizer_file: Path) -> None:
    tokenizer = tokenizers.load(str(tokenizer_file))
    ids = chat.encode(tokenizer, [{"role": "user", "content": "say <|endoftext|> please"}]).ids
    assert tokenizers.end_of_text(tokenizer) not in ids


def rows(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_packing_keeps_conversations_whole(tmp_path: Path, tokenizer_file: Path) -> None:
    source = rows(
        tmp_path / "rows.jsonl",
        "".join(f'{{"instruction": "Question {n}?", "context": "", "response": "Answer {n}."}}\n' for n in range(60))
        + f'{{"instruction": "Long?", "response": "{"word " * 300}"}}\n',
    )
    counts = instructions.pack(str(tmp_path / "out"), str(source), str(tokenizer_file), 64, 0.2)
    assert counts["too_long"] == 1 and counts["conversations"] + counts["heldout_conversations"] == 60
    tokenizer = tokenizers.load(str(tokenizer_file))
    batches = Batches(tmp_path / "out/train", batch_size=1, sequence_length=64, seed=0)
    answers = 0
    for row in range(batches.rows):
        batch = batches.take(np.array([row]))
        text = tokenizer.decode(batch.inputs_BT[0].tolist(), skip_special_tokens=False)
        assert text.startswith("### User:\nQuestion")
        learned = batch.targets_BT[0][batch.weights_BT[0] > 0].tolist()
        said = tokenizer.decode(learned, skip_special_tokens=False).split("<|endoftext|>")
        assert said[-1] == "" and all(s.startswith("Answer") for s in said[:-1])
        assert len(set(batch.segments_BT[0].tolist())) in (len(said) - 1, len(said))
        answers += len(said) - 1
    assert answers == counts["conversations"]


@pytest.mark.parametrize("line", ["not json", '{"instruction": "no answer"}', '["a", "list"]'])
def test_a_bad_row_is_named(tmp_path: Path, tokenizer_file: Path, line: str) -> None:
    source = rows(tmp_path / "rows.jsonl", f'{{"instruction": "a", "response": "b"}}\n{line}\n')
    with pytest.raises(KodaError, match="line 2"):
        instructions.pack(str(tmp_path / "out"), str(source), str(tokenizer_file), 64, 0.2)
