"""Letters in names: B batch, T time."""

from pathlib import Path

import numpy as np
import pytest

from model.data import tokenizer as tokenizers
from model.data.adaptation import build
from model.data.batches import Batches
from model.data.chat import Tokens, encode
from model.data.packing import Rows
from model.data.shards import ShardWriter
from model.errors import KodaError
from model.figures import AdaptationFigures

OLD, NEW = 32, 64
TEXT = 511  # a token that no conversation has


@pytest.fixture
def stages(tmp_path: Path, tokenizer_file: Path, prose: str) -> Path:
    """The output of tokenize and sft: long and short documents in several shards, and packed conversations."""
    vocabulary = tokenizers.load(str(tokenizer_file))
    end = vocabulary.end
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
    writer = ShardWriter(tmp_path / "train", 512, 2000)
    ids = vocabulary.plain(prose[:40_000])
    for number in range(30):
        writer.add([*ids[number * 300 : number * 300 + (200 if number % 3 else 10)], end])
    writer.close()
    rows = Rows(tmp_path / "chat/train", 512, OLD, end)
    for number in range(40):
        rows.add(
            encode(vocabulary, [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": "Yes."}])
        )
    for _ in range(5):  # of plain text, which fine-tuning mixed in
        rows.add(Tokens([TEXT] * (OLD + 1), [True] * (OLD + 1)))
    rows.close()
    return tmp_path


def counts_of(stages: Path, **changes: object) -> AdaptationFigures:
    settings = {"old_context": OLD, "context": NEW, "rows": 40, "chat_share": 0.25, **changes}
    return build(str(stages / "out"), str(stages), str(stages / "chat"), **settings)  # type: ignore[arg-type]


def test_rows_are_long_documents_and_complete_conversations(stages: Path, tokenizer_file: Path) -> None:
    counts = counts_of(stages)
    assert counts.long_rows == 30 and 8 <= counts.chat_rows <= 10
    vocabulary = tokenizers.load(str(tokenizer_file))
    decode = vocabulary.tokenizer.decode
    batches = Batches(stages / "out", batch_size=1, sequence_length=NEW, seed=0)
    assert batches.rows == counts.long_rows + counts.chat_rows
    for row in range(batches.rows):
        batch = batches.take(np.array([row]))
        text = decode(batch.inputs_BT[0].tolist(), skip_special_tokens=False)
        if row < counts.long_rows:
            assert batch.weights_BT.all() and len(set(batch.segments_BT[0].tolist())) == 1
        else:
            answers = decode(batch.targets_BT[0][batch.weights_BT[0] > 0].tolist(), skip_special_tokens=False)
            assert text.startswith("### User:") and set(answers.split("<|endoftext|>")) == {"Yes.", ""}
            assert len(set(batch.segments_BT[0].tolist())) > 1


def test_long_documents_are_drawn_from_the_whole_text(stages: Path, tokenizer_file: Path, prose: str) -> None:
    counts = counts_of(stages, rows=16)
    ids = np.asarray(tokenizers.load(str(tokenizer_file)).plain(prose[:40_000]))
    batches = Batches(stages / "out", batch_size=1, sequence_length=NEW, seed=0)
    text = batches.take(np.arange(counts.long_rows)).inputs_BT.ravel()
    windows = np.lib.stride_tricks.sliding_window_view(text, 20)
    drawn = [n for n in range(30) if n % 3 and (windows == ids[n * 300 : n * 300 + 20]).all(axis=1).any()]
    assert counts.long_documents == len(drawn) < 10 and min(drawn) < 10 and max(drawn) >= 20


def test_rows_of_text_among_the_conversations_are_left_out(stages: Path) -> None:
    counts = counts_of(stages, chat_share=0.9)  # which takes all conversations that there are
    batches = Batches(stages / "out", batch_size=1, sequence_length=NEW, seed=0)
    assert counts.chat_rows == batches.rows - counts.long_rows
    assert TEXT not in batches.take(np.arange(batches.rows)).targets_BT


def test_text_without_long_documents_is_refused(stages: Path) -> None:
    with pytest.raises(KodaError, match=r"0 document\(s\) longer than 500 tokens.*extend\.steps=0"):
        counts_of(stages, old_context=500)
