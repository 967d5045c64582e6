import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.order import row_at


@given(rows=st.integers(1, 3000), seed=st.integers(0, 2**31), epoch=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_every_epoch_reads_every_row_once(rows: int, seed: int, epoch: int) -> None:
    read = row_at(np.arange(epoch * rows, (epoch + 1) * rows), rows, seed)
    assert sorted(read.tolist()) == list(range(rows))


@given(rows=st.integers(50, 10_000), seed=st.integers(0, 1000), cut=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_the_order_does_not_depend_on_the_size_of_reads(rows: int, seed: int, cut: int) -> None:
    expected = row_at(np.arange(10_000), rows, seed)
    parts = [row_at(np.arange(0, cut), rows, seed), row_at(np.arange(cut, 10_000), rows, seed)]
    np.testing.assert_array_equal(np.concatenate(parts), expected)


def test_epochs_and_seeds_have_different_orders_without_neighbours() -> None:
    first, second = row_at(np.arange(1000), 1000, 0), row_at(np.arange(1000, 2000), 1000, 0)
    assert (first == second).mean() < 0.01
    assert (first == row_at(np.arange(1000), 1000, 1)).mean() < 0.01
    neighbours = np.abs(np.diff(first)) == 1
    assert neighbours.mean() < 0.01  # neighbours in the shards are not neighbours in the order


def test_billions_of_rows_are_permuted() -> None:
    rows = 5_000_000_000
    read = row_at(np.arange(10_000), rows, 0)
    assert len(set(read.tolist())) == 10_000 and read.max() < rows and read.min() >= 0
