import json
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from model.data import blocks
from model.data.blocks import Report, Work
from model.data.cutting import LONGEST, PIECE, Cut, cut
from model.data.document import Document, Flaw
from model.data.heldout import is_heldout
from model.data.prepare import heldout_documents
from model.errors import KodaError
from tests.model.data.conftest import Prepare
from tests.model.data.test_prepare import pieces

FRACTION = 0.2


def here(works: Iterator[Work]) -> Generator[Report, None, None]:
    yield from map(blocks.fill, works)


def speeches(count: int) -> str:
    """A play in one file: a name, a speech, an empty line."""
    return "".join(
        f"Speaker {n % 7}:\nThis is speech {n}; it says {n * n} things.\n" + "And so on.\n" * (n % 5) + "\n"
        for n in range(count)
    )


def stories(count: int) -> list[str]:
    return [f"Story {n} is short.\n\n  It ends with {n * n}." for n in range(count)]


def cut_text(text: str, where: Cut) -> list[Document]:
    return [item for item in cut([Document("book.txt", text)], where, FRACTION) if isinstance(item, Document)]


@pytest.mark.parametrize(
    "text",
    [
        speeches(3000),
        speeches(3000).replace("\n", "\r\n"),
        speeches(3000).replace("\n\n", "\n"),  # lines without paragraphs
        speeches(3000).replace("\n", " "),  # one line
        "吾輩は猫である。名前はまだ無い。" * 4000,
        "".join(map(str, range(20_000))),
        "Text." + "\n" * 50_000 + speeches(3000),
    ],
)
def test_pieces_of_a_long_text_are_the_text_and_each_belongs_to_its_part(text: str) -> None:
    documents = cut_text(text, "paragraphs")
    assert "".join(document.text for document in documents) == text
    held = [document.text for document in documents if is_heldout(document.text, FRACTION)]
    assert all(PIECE <= len(piece) <= LONGEST for piece in held if not text.endswith(piece))
    starts = [int(document.name.removeprefix("book.txt, character ")) for document in documents]
    assert all(text.startswith(document.text, start) for document, start in zip(documents, starts, strict=True))


def test_text_between_held_out_pieces_is_one_document() -> None:
    documents = cut_text(speeches(30_000), "paragraphs")
    held = [is_heldout(document.text, FRACTION) for document in documents]
    share = sum(len(document.text) for document, out in zip(documents, held, strict=True) if out) / len(
        speeches(30_000)
    )
    assert (
        0.15 < share < 0.25
    )  # some 550 pieces, each held out with a probability of 0.2: four standard errors are 0.07
    joined = [len(document.text) for document, out in zip(documents, held, strict=True) if not out]
    assert (
        sum(joined) / len(joined) > 3 * PIECE
    )  # five pieces in a row, less those cut since their own hash held them out
    assert max(joined) > 10 * PIECE


def test_held_out_pieces_stay_held_out_as_the_file_grows() -> None:
    before, after = (
        {d.text for d in cut_text(speeches(n), "paragraphs") if is_heldout(d.text, FRACTION)} for n in (3000, 4000)
    )
    ends = speeches(3000)[-LONGEST:]
    assert before - after <= {text for text in before if text in ends} and len(after) > len(before)


def test_markers_divide_documents_and_are_in_none() -> None:
    expected = stories(20)
    for divider in ("\n<|endoftext|>\n", "<|endoftext|>", "\n\n<|endoftext|> \r\n\n", "<|endoftext|>\n<|endoftext|>\n"):
        for text in (divider.join(expected), divider.join([*expected, ""]), divider.join(["", *expected])):
            for where in ("endoftext", "paragraphs"):
                assert [document.text for document in cut_text(text, where)] == expected
    indented = cut_text("a\n<|endoftext|>\n\n    b", "endoftext")
    assert [document.text for document in indented] == ["a", "    b"]


def test_what_is_short_or_whole_keeps_its_name() -> None:
    short = Document("a.txt", "x" * LONGEST)
    assert [*cut([short], "paragraphs", FRACTION)] == [short]
    empty = [*cut([Document("b.txt", "<|endoftext|>\n")], "endoftext", FRACTION)]
    assert isinstance(empty[0], Flaw) and empty[0].reason == "empty"


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_a_corpus_of_one_document_is_cut_at_paragraphs(tmp_path: Path, prepared: Prepare, suffix: str) -> None:
    source, text = tmp_path / f"play{suffix}", speeches(3000)
    source.write_text(json.dumps({"text": text}) + "\n" if suffix == ".jsonl" else text)
    figures = prepared(source, tmp_path / "out", here)
    assert figures.cut == "paragraphs" and 0 < figures.heldout_documents < figures.documents
    train, heldout = pieces(tmp_path / "out", "train"), pieces(tmp_path / "out", "heldout")
    assert sum(map(len, train + heldout)) == len(text)
    assert [document.text for document in heldout_documents(tmp_path / "out")] == heldout
    again = prepared(source, tmp_path / "again", here, cut="paragraphs")
    assert again.train_tokens == figures.train_tokens


def test_a_corpus_of_one_document_with_markers_is_cut_there_alone(tmp_path: Path, prepared: Prepare) -> None:
    texts = [*stories(40), speeches(300)]
    (tmp_path / "stories.txt").write_text("\n<|endoftext|>\n".join(texts))
    figures = prepared(tmp_path / "stories.txt", tmp_path / "out", here)
    assert figures.cut == "endoftext" and figures.documents == 41 and figures.markers == 0
    assert {*pieces(tmp_path / "out", "train"), *pieces(tmp_path / "out", "heldout")} == {
        text.rstrip() for text in texts[:-1]
    } | {texts[-1]}


def test_a_corpus_that_whole_documents_divide_is_not_cut_and_its_markers_are_counted(
    tmp_path: Path, prepared: Prepare
) -> None:
    (tmp_path / "text").mkdir()
    for number in range(30):
        (tmp_path / "text" / f"{number:02}.txt").write_text(f"{number} <|endoftext|> {speeches(number + 300)}")
    figures = prepared(tmp_path / "text", tmp_path / "out", here)
    assert figures.cut == "never" and figures.documents == 30 and figures.markers == 30
    figures = prepared(tmp_path / "text", tmp_path / "cut", here, cut="endoftext")
    assert figures.cut == "endoftext" and figures.documents == 60 and figures.markers == 0


def test_one_document_that_must_not_be_cut_or_is_too_short_is_refused_with_a_cure(
    tmp_path: Path, prepared: Prepare
) -> None:
    (tmp_path / "play.txt").write_text(speeches(3000))
    with pytest.raises(KodaError, match=r"has 1 document\(s\).*tokenize\.cut=auto"):
        prepared(tmp_path / "play.txt", tmp_path / "out", here, cut="never")
    (tmp_path / "line.txt").write_text("One line.")
    with pytest.raises(KodaError, match=r"has 1 document\(s\).*use more text"):
        prepared(tmp_path / "line.txt", tmp_path / "other", here)
