"""Letters in names: B batch, T time."""

from pathlib import Path

import numpy as np
import pytest

from model.data.batches import Batches
from model.data.shards import STARTS, TRAINED, Shards, ShardWriter
from model.errors import KodaError


def write_shards(folder: Path, tokens: int = 1000, shard: int = 300) -> Path:
    writer = ShardWriter(folder, vocab_size=2000, shard_tokens=shard)
    for start in range(0, tokens, 37):
        writer.add(range(start, min(start + 37, tokens)))
    writer.close()
    return folder


def test_no_token_is_lost_or_moved(tmp_path: Path) -> None:
    shards = Shards(write_shards(tmp_path))
    assert [len(s) for s in shards.tokens] == [300, 300, 300, 100]
    np.testing.assert_array_equal(shards.read(0, 1000)[0], np.arange(1000))
    np.testing.assert_array_equal(shards.read(290, 320)[0], np.arange(290, 610))  # over three shards


def test_the_number_type_fits_the_vocabulary(tmp_path: Path) -> None:
    assert ShardWriter(tmp_path, 1 << 16, 10).dtype == np.uint16
    assert ShardWriter(tmp_path, (1 << 16) + 1, 10).dtype == np.uint32


def test_every_token_is_a_target_once_in_an_epoch(tmp_path: Path) -> None:
    batches = Batches(write_shards(tmp_path), batch_size=3, sequence_length=27, seed=5)
    assert batches.rows == 37
    targets = np.concatenate([batches[step].targets_BT.ravel() for step in range(13)])[: 37 * 27]
    assert sorted(targets.tolist()) == list(range(1, 1000))
    batch = batches[4]
    np.testing.assert_array_equal(batch.inputs_BT[:, 1:], batch.targets_BT[:, :-1])


def test_a_batch_is_a_function_of_its_step(tmp_path: Path) -> None:
    write_shards(tmp_path)
    one, other = (Batches(tmp_path, batch_size=4, sequence_length=16, seed=1) for _ in range(2))
    for _ in (other[step] for step in range(9)):
        pass
    np.testing.assert_array_equal(one[9].inputs_BT, other[9].inputs_BT)


def test_the_fingerprint_changes_with_corpus_length_batch_size_and_seed(tmp_path: Path) -> None:
    first, second = write_shards(tmp_path / "a"), write_shards(tmp_path / "b", tokens=999)
    settings = {"batch_size": 4, "sequence_length": 16, "seed": 1}
    fingerprints = {
        Batches(folder, **{**settings, **change}).fingerprint()
        for folder, change in ((first, {}), (second, {}), *((first, {key: 2}) for key in settings))
    }
    assert len(fingerprints) == 5


def test_segments_end_at_the_end_of_text_token(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, 100, 100)
    writer.add([5, 6, 0, 7, 8, 9, 0, 10])
    writer.close()
    batch = Batches(tmp_path, batch_size=1, sequence_length=7, seed=0, isolate=0)[0]
    assert batch.segments_BT.tolist() == [[0, 0, 0, 1, 1, 1, 1]]


def test_packed_rows_stay_complete_and_only_marked_tokens_are_trained(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, 100, 100, marked=True)
    writer.add([1, 2, 3, 4, 5], [STARTS, TRAINED, TRAINED, STARTS, TRAINED])
    writer.add([6, 7, 8, 9, 10], [STARTS, 0, TRAINED, STARTS, 0])
    writer.close()
    batches = Batches(tmp_path, batch_size=2, sequence_length=4, seed=0)
    batch = batches.take(np.array([0, 1]))
    assert batch.inputs_BT.tolist() == [[1, 2, 3, 4], [6, 7, 8, 9]]
    assert batch.weights_BT.tolist() == [[1, 1, 0, 1], [0, 1, 0, 0]]
    assert batch.segments_BT.tolist() == [[1, 1, 1, 2], [1, 1, 1, 2]]


def test_a_truncated_shard_is_reported_by_name(tmp_path: Path) -> None:
    path = write_shards(tmp_path) / "00002.npy"
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(KodaError, match=r"00002\.npy"):
        Shards(tmp_path)


def test_tokens_outside_the_vocabulary_are_refused(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, 50, 100)
    writer.add(list(range(60)))
    writer.close()
    with pytest.raises(KodaError, match="token 59, outside the vocabulary"):
        Batches(tmp_path, batch_size=1, sequence_length=59, seed=0)[0]


def test_too_little_text_for_one_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KodaError, match="too few for one row of 2001"):
        Batches(write_shards(tmp_path), batch_size=1, sequence_length=2000, seed=0)
