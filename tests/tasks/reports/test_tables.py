import re
from html import unescape

import pytest

from model.figures import ParityFigures, TaskFigures
from tasks.reports.tables import NONE, PARITY, TASK, Table, beside_published, of_each, side_by_side

PLAIN = ParityFigures(failed=[], kl_divergence=8e-5, kl_limit=1e-4, perplexity_ratio=1.0002, greedy_equal=64)
TABLE = Table(
    ["file", "items", "perplexity", "ends by itself"],
    [["a <b> & c", 1234567, 2.5, True], ["the second", 7, 123456.7, False]],
)
CELLS = [
    ["file", "items", "perplexity", "ends by itself"],
    ["a <b> & c", "1,234,567", "2.5", "yes"],
    ["the second", "7", "123,457", "no"],
]


def as_html(table: Table) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", table.html())
    return [[unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows]


def as_markdown(table: Table) -> list[list[str]]:
    head, rule, *rows = [
        line.removeprefix("| ").removesuffix(" |").split(" | ") for line in table.markdown().split("\n")
    ]
    assert rule == ["---"] * len(head)
    return [head, *rows]


def as_text(table: Table) -> list[list[str]]:
    return [re.split(" {2,}", line) for line in table.text()]


@pytest.mark.parametrize("cells", [as_html, as_markdown, as_text])
def test_table_has_the_same_cells_in_every_form(cells) -> None:  # type: ignore[no-untyped-def]
    assert cells(TABLE) == CELLS
    parity = of_each("export", {"hf": PLAIN, "gguf/a-Q8_0.gguf": PLAIN}, PARITY, ("KL divergence, nats", "limit"))
    assert cells(parity) == [
        ["export", "KL divergence, nats", "limit"],
        ["hf", "8.0e-05", "1e-04"],
        ["gguf/a-Q8_0.gguf", "8.0e-05", "1e-04"],
    ]


def test_words_are_left_and_numbers_right_in_html_and_text() -> None:
    table = Table(["a", "b", "c"], [["x", "y", 1], ["long", "longer", 1000]], left=2)
    assert table.text() == ["a     b           c", "x     y           1", "long  longer  1,000"]
    first, second, third = re.findall(r"<td( class=l)?>", table.html())[:3]
    assert first and second and not third


def test_missing_figure_is_empty_and_never_none() -> None:
    """An empty cell keeps its column in each form."""
    table = Table(["task", "chance", "items"], [["word", None, 40]])
    assert as_html(table)[1] == as_markdown(table)[1] == ["word", "", "40"]
    assert table.text()[1] == "word             40"


def test_every_column_can_be_made_of_figures_without_any_optional_one() -> None:
    """And of tasks with all of them: what is missing is empty, what is there is not."""
    sparse = of_each("task", {"word": TaskFigures(n=40, acc=0.5)}, TASK, TASK).rows[0]
    optional = {"acc_norm": 0.5, "stderr": 0.1, "perplexity": 9.0, "chance": 0.25, "longest": 0.3, "unigram": 0.2}
    full = of_each("task", {"word": TaskFigures(n=40, acc=0.5, calibration_error=0.1, **optional)}, TASK, TASK).rows[0]
    assert "None" not in map(str, sparse) and "" in sparse and "" not in full
    for kl in (None, 1e-3):
        assert of_each("file", {"a": ParityFigures(failed=[], kl_divergence_beyond=kl)}, PARITY, PARITY).rows


def test_runs_are_side_by_side_column_by_column() -> None:
    """A run without the row has a dash there, and each row is there once."""
    first, second = TaskFigures(n=40, acc=0.5, stderr=0.1), TaskFigures(n=30, acc=0.7, stderr=0.2)
    runs = {"a": {"word": first}, "b": {"word": second, "order": second}}
    table = side_by_side("task", runs, TASK, ("accuracy, %", "items"))
    assert table.head == ["task", "accuracy, %, a", "accuracy, %, b", "items, a", "items, b"]
    assert table.rows == [["word", "50.0", "70.0", 40, 30], ["order", NONE, "70.0", NONE, 30]]


def test_published_figures_are_beside_those_of_the_same_task() -> None:
    """Tasks without items are left out, and the mean is of the tasks with choices."""
    arc, piqa = (TaskFigures(n=100, acc=0.9, acc_norm=acc, stderr=0.04) for acc in (0.36, 0.64))
    lambada = TaskFigures(n=50, acc=0.1, stderr=0.01, perplexity=77.0)
    table = beside_published("tiny", {"arc_easy": arc, "piqa": piqa, "lambada_openai": lambada, "boolq": TaskFigures()})
    assert [row[0].split(",")[0] for row in table.rows[:-1]] == [
        "arc_easy acc_norm",
        "piqa acc_norm",
        "lambada_openai acc",
    ]
    assert [row[1] for row in table.rows] == ["36.0", "64.0", "10.0", "50.0"]
    chance = list(table.head).index("chance")
    assert [row[chance] for row in table.rows[:2]] == ["25.0", "50.0"] and table.rows[-1][chance] == "37.5"
