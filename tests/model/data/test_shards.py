from pathlib import Path

import numpy as np
import pytest

from model.data.batches import Batches
from model.data.shards import STARTS, TRAINED, Shards, ShardWriter
from model.errors import KodaError


def written(folder: Path, tokens: int = 1000, shard: int = 300) -> Path:
    writer = ShardWriter(folder, vocab_size=2000, shard_tokens=shard)
    for start in range(0, tokens, 37):
        writer.add(range(start, min(start + 37, tokens)))
    writer.close()
    return folder


def test_no_token_is_lost_or_moved(tmp_path: Path) -> None:
    shards = Shards(written(tmp_path))
    assert [len(s) for s in shards.tokens] == [300, 300, 300, 100]
    np.testing.assert_array_equal(shards.read(0, 1000)[0], np.arange(1000))
    np.testing.assert_array_equal(shards.read(290, 320)[0], np.arange(290, 610))  # over three shards


def test_the_number_type_holds_the_vocabulary(tmp_path: Path) -> None:
    assert ShardWriter(tmp_path, 1 << 16, 10).dtype == np.uint16
    assert ShardWriter(tmp_path, (1 << 16) + 1, 10).dtype == np.uint32


def test_every_token_is_a_target_once_in_an_epoch(tmp_path: Path) -> None:
    batches = Batches(written(tmp_path), batch_size=3, sequence_length=27, seed=5)
    assert batches.rows == 37
    targets = np.concatenate([batches[step].targets_BT.ravel() for step in range(13)])[: 37 * 27]
    assert sorted(targets.tolist()) == list(range(1, 1000))
    batch = batches[4]
    np.testing.assert_array_equal(batch.inputs_BT[:, 1:], batch.targets_BT[:, :-1])


def test_a_batch_is_a_function_of_its_step(tmp_path: Path) -> None:
    written(tmp_path)
    one, other = (Batches(tmp_path, batch_size=4, sequence_length=16, seed=1) for _ in range(2))
    for _ in (other[step] for step in range(9)):
        pass
    np.testing.assert_array_equal(one[9].inputs_BT, other[9].inputs_BT)


def test_another_corpus_length_batch_or_seed_has_another_fingerprint(tmp_path: Path) -> None:
    first, second = written(tmp_path / "a"), written(tmp_path / "b", tokens=999)
    settings = {"batch_size": 4, "sequence_length": 16, "seed": 1}
    prints = {
        Batches(folder, **{**settings, **change}).fingerprint()
        for folder, change in ((first, {}), (second, {}), *((first, {key: 2}) for key in settings))
    }
    assert len(prints) == 5


def test_segments_end_with_the_end_of_text(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, 100, 100)
    writer.add([5, 6, 0, 7, 8, 9, 0, 10])
    writer.close()
    batch = Batches(tmp_path, batch_size=1, sequence_length=7, seed=0, isolate=0)[0]
    assert batch.segments_BT.tolist() == [[0, 0, 0, 1, 1, 1, 1]]


def test_marked_rows_stay_whole_and_train_what_is_marked(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, 100, 100, marked=True)
    writer.add([1, 2, 3, 4, 5], [STARTS, TRAINED, TRAINED, STARTS, TRAINED])
    writer.add([6, 7, 8, 9, 10], [STARTS, 0, TRAINED, STARTS, 0])
    writer.close()
    batches = Batches(tmp_path, batch_size=2, sequence_length=4, seed=0)
    batch = batches.take(np.array([0, 1]))
    assert batch.inputs_BT.tolist() == [[1, 2, 3, 4], [6, 7, 8, 9]]
    assert batch.weights_BT.tolist() == [[1, 1, 0, 1], [0, 1, 0, 0]]
    assert batch.segments_BT.tolist() == [[1, 1, 1, 2], [1, 1, 1, 2]]


def test_a_shard_cut_short_is_named(tmp_path: Path) -> None:
    path = written(tmp_path) / "00002.npy"
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(KodaError, match=r"00002\.npy"):
        Shards(tmp_path)


def test_tokens_outside_the_vocabulary_are_refused(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, 50, 100)
    writer.add(list(range(60)))
    writer.close()
    with pytest.raises(KodaError, match="token 59, outside the vocabulary"):
        Batches(tmp_path, batch_size=1, sequence_length=59, seed=0)[0]


def test_too_little_text_is_said(tmp_path: Path) -> None:
    with pytest.raises(KodaError, match="too few for one row of 2001"):
        Batches(written(tmp_path), batch_size=1, sequence_length=2000, seed=0)
