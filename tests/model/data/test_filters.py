import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from model.data.filters import Overlap, reason
from model.data.recipe import Recipe
from model.errors import KodaError
from tests.model.data.conftest import Prepare

MakeRecipe = Callable[..., Recipe]
ITEM = "Which statement best explains why photosynthesis is the foundation of most food webs on this planet?"


@pytest.fixture
def items(tmp_path: Path) -> Path:
    (tmp_path / "items").mkdir()
    rows = [{"question": ITEM, "choices": {"text": ["a short one", "another"]}}]
    (tmp_path / "items" / "arc.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "items" / "none.jsonl").write_text("")
    return tmp_path / "items"


def test_documents_outside_the_length_bounds_are_left_out(tmp_path: Path, recipe: MakeRecipe) -> None:
    bounds = recipe(tmp_path, shortest=3, longest=5)
    assert [reason("x" * n, bounds) for n in (2, 3, 5, 6)] == ["too_short", "", "", "too_long"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The quick brown fox jumps over the lazy dog.\nAnd then it sleeps.\n", ""),
        ("日本語のテキスト、中文和한국어。次の行もある。\n", ""),
        ("हिन्दी में लिखा हुआ एक वाक्य।\n", ""),
        ("same line again\n" * 9, "repeated_lines"),
        ("<<<>>> ### !!! *** ((())) ab\n", "symbols"),
        ("caf\ufffd and na\ufffdve", "letters_lost"),
    ],
)
def test_quality_rules_hold_in_any_language(tmp_path: Path, recipe: MakeRecipe, text: str, expected: str) -> None:
    assert reason(text, recipe(tmp_path, quality=True)) == expected
    assert reason(text, recipe(tmp_path)) == ""


def test_thirteen_shared_words_are_detected_in_any_case_and_punctuation(items: Path) -> None:
    overlap = Overlap(str(items))
    words = ITEM.split()
    near = "  ".join(words[1:14]).upper().replace("  ", ",\n")
    assert overlap.near(f"The question was: {near} — and so on.") == "arc"
    assert overlap.near(" ".join(words[:12]) + " of what?") == ""  # twelve
    assert overlap.near(" ".join(reversed(words))) == ""
    assert overlap.near("another short one") == ""


def test_a_folder_without_items_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KodaError, match="file of evaluation items"):
        Overlap(str(tmp_path))


def test_items_are_read_as_other_files_of_rows_are(items: Path) -> None:
    """A byte order mark, a suffix in capitals, a copy that macOS left; what cannot be read is named."""
    (items / "B.JSONL").write_bytes(b"\xef\xbb\xbf" + json.dumps({"q": ITEM[::-1]}).encode() + b"\n\n")
    (items / "._arc.jsonl").write_bytes(b"\x00\x05\x16\x07")
    assert Overlap(str(items)).near(ITEM[::-1]) == "B"
    os.rename(items / "B.JSONL", os.fsencode(items) + b"/caf\xe9.jsonl")  # noqa: PTH104  # bytes
    assert Overlap(str(items)).near(ITEM[::-1]) == "caf\\xe9"
    (items / "c.jsonl").write_bytes(b'{"q": "caf\xe9"}\n')
    with pytest.raises(KodaError, match=r"c\.jsonl, byte 0: it is not UTF-8.*tokenize\.contamination"):
        Overlap(str(items))


def test_documents_near_an_item_are_counted_and_dropped_if_so_set(
    tmp_path: Path, items: Path, prepared: Prepare
) -> None:
    source = tmp_path / "text"
    source.mkdir()
    for number in range(20):
        (source / f"{number}.txt").write_text(f"This is text number {number}. " * 9)
    (source / "near.txt").write_text(f"Yesterday I read: {ITEM} I had no answer.")
    counted = prepared(source, tmp_path / "counted", contamination=str(items))
    assert counted.near_evaluation_items == {"arc": 1} and counted.documents == 21
    dropped = prepared(source, tmp_path / "dropped", contamination=str(items), drop_contaminated=True)
    assert dropped.dropped == {"contaminated": 1} and dropped.documents == 20
    assert "near.txt shares 13 words" in (tmp_path / "dropped/notes.json").read_text()
