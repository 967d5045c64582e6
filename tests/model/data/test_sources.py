from pathlib import Path

import pytest

from model.data import docs, sources
from model.data.prepare import heldout_documents, is_heldout, prepare
from model.data.shards import Shards
from model.errors import KodaError


def read(source: Path) -> tuple[dict[str, str], list[str]]:
    notes: list[str] = []
    found = {Path(d.name).name: d.text for d in sources.documents(str(source), 1, notes.append)}
    return found, notes


def test_latin_1_is_read_and_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Žluťoučký café".encode())
    (tmp_path / "b.txt").write_bytes("café, “quoted”".encode("cp1252"))
    (tmp_path / "c.txt").write_bytes(b"\xef\xbb\xbfwith a mark")
    found, notes = read(tmp_path)
    assert found == {"a.txt": "Žluťoučký café", "b.txt": "café, “quoted”", "c.txt": "with a mark"}
    assert len(notes) == 1 and "b.txt" in notes[0] and "Windows-1252" in notes[0]


@pytest.mark.parametrize("raw", [b"\x7fELF\x02\x01\x01\x00", b"text \x81\x8d then"])
def test_what_is_not_text_is_refused_by_name(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "blob.txt").write_bytes(raw)
    with pytest.raises(KodaError, match=r"blob\.txt"):
        read(tmp_path)


def test_a_missing_or_wordless_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KodaError, match="does not exist"):
        read(tmp_path / "nowhere")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    with pytest.raises(KodaError, match="holds no text"):
        read(tmp_path)


def test_docs_read_docstrings_and_run_nothing(tmp_path: Path) -> None:
    path = tmp_path / "loud.py"
    path.write_text('"""A module."""\nraise SystemExit\ndef f(x):\n    """What f does."""\nclass C:\n    """C."""\n')
    assert docs.entries("loud", path) == [("loud", "A module."), ("loud.f", "What f does."), ("loud.C", "C.")]


def test_docs_of_the_standard_library() -> None:
    found = dict(docs.documents("docs:stdlib", 1))
    assert "os.path" not in found and "Join two or more pathname components" in found["posixpath"]
    assert "topics.while" in found
    assert docs.fingerprint("docs:stdlib") != docs.fingerprint("docs:stdlib,numpy")
    with pytest.raises(KodaError, match="'nopackage' is installed"):
        docs.fingerprint("docs:nopackage")


def corpus(folder: Path, documents: int) -> None:
    folder.mkdir()
    for number in range(documents):
        (folder / f"{number:03}.txt").write_text(f"Document number {number} says this and that. " * 20)


def run_prepare(source: Path, out: Path, **changes: object) -> dict:
    settings = {
        "tokenizer": "train",
        "vocab_size": 300,
        "heldout_fraction": 0.2,
        "shard_tokens": 1000,
        "workers": 1,
        "watch": lambda done, note: None,
        **changes,
    }
    return prepare(out, source=str(source), **settings)


def test_no_document_is_on_both_sides_and_none_is_lost(tmp_path: Path) -> None:
    corpus(tmp_path / "text", 40)
    figures = run_prepare(tmp_path / "text", tmp_path / "out")
    held = heldout_documents(tmp_path / "out")
    assert 0 < len(held) == figures["heldout_documents"] < 40
    tokenizer = pytest.importorskip("tokenizers").Tokenizer.from_file(str(tmp_path / "out/tokenizer.json"))
    train, heldout = (Shards(tmp_path / "out" / part) for part in ("train", "heldout"))
    end = figures["end_of_text"]
    texts = {}
    for part, shards in (("train", train), ("heldout", heldout)):
        pieces: list[list[int]] = [[]]
        for token in shards.read(0, len(shards))[0].tolist():
            if token == end:
                pieces.append([])
            else:
                pieces[-1].append(token)
        texts[part] = {tokenizer.decode(piece) for piece in pieces[:-1]}
    assert texts["heldout"] == {d.text for d in held}
    assert texts["train"] | texts["heldout"] == {p.read_text() for p in (tmp_path / "text").iterdir()}
    assert not texts["train"] & texts["heldout"]


def test_a_document_stays_on_its_side_as_the_corpus_grows(tmp_path: Path) -> None:
    corpus(tmp_path / "text", 30)
    run_prepare(tmp_path / "text", tmp_path / "out")
    before = {d.text for d in heldout_documents(tmp_path / "out")}
    (tmp_path / "text" / "more.txt").write_text("One more document. " * 20)
    run_prepare(tmp_path / "text", tmp_path / "again")
    after = {d.text for d in heldout_documents(tmp_path / "again")}
    assert before <= after
    assert all(is_heldout(text, 0.2) for text in after)


def test_empty_files_give_an_error(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text(" \n")
    with pytest.raises(KodaError, match="is empty"):
        run_prepare(tmp_path / "text", tmp_path / "out")
