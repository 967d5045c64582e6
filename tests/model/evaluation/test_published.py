"""The tables of standard tasks and of published figures name the same tasks: reports look each task up in both."""

from pathlib import Path

import pytest

from model.evaluation import published, standard


def test_both_tables_name_the_same_tasks() -> None:
    assert set(published.TASKS) == set(standard.TASKS)


@pytest.mark.parametrize("row", published.ROWS, ids=lambda row: row.name)
def test_a_published_row_has_scores_of_known_tasks_alone(row: published.Row) -> None:
    assert row.scores and set(row.scores) <= set(standard.TASKS)
    assert all(0 <= score <= 1 for score in row.scores.values())


def test_the_quoted_metric_of_each_task_is_one_that_its_items_have(standard_items: Path) -> None:
    """acc_norm divides by the lengths of the choices: a task without them has acc alone."""
    items = standard.items(standard.TASKS, str(standard_items), limit=1)
    has_lengths = {name: item.lengths is not None for name, (item,) in items.items()}
    assert {name: metric == "acc_norm" for name, metric in published.TASKS.items()} == has_lengths
