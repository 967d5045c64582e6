import gzip
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from model.data import docs, hub, sources
from model.data.document import Document, Flaw
from model.data.recipe import Recipe
from model.errors import KodaError

Make = Callable[..., Recipe]


def found(source: Path, recipe: Recipe, notes: list[str] | None = None) -> Iterator[Document | Flaw]:
    """Everything in the parts of a source, in their order."""
    for part in sources.parts(str(source), recipe, ""):
        yield from sources.documents(part, recipe, [].append if notes is None else notes.append)


def texts(source: Path, recipe: Recipe) -> list[str]:
    return [document.text for document in found(source, recipe) if isinstance(document, Document)]


def flaws(source: Path, recipe: Recipe) -> list[tuple[str, str]]:
    """Each flaw's reason, and where it is (without the folder)."""
    return [
        (flaw.reason, flaw.name.replace(f"{source}{os.sep}", "").replace(str(source), ""))
        for flaw in found(source, recipe)
        if isinstance(flaw, Flaw)
    ]


def rows(count: int) -> list[dict[str, object]]:
    return [{"text": f"Row {number} says “this” and that.\nTwice.", "more": number} for number in range(count)]


def as_jsonl(of: list[dict[str, object]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in of).encode()


def test_every_kind_of_file_gives_its_documents_in_order(tmp_path: Path, recipe: Make) -> None:
    raw, expected = as_jsonl(rows(50)), [row["text"] for row in rows(50)]
    (tmp_path / "a.jsonl").write_bytes(raw)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(raw))
    frames = zstandard.compress(raw[:1000]) + zstandard.compress(raw[1000:])  # as tools that append write it
    (tmp_path / "c.jsonl.zst").write_bytes(frames)
    table = pyarrow.Table.from_pylist(rows(50))
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet", row_group_size=7)
    (tmp_path / "e.md").write_text("Alone.")
    assert texts(tmp_path, recipe(tmp_path)) == [*expected * 4, "Alone."]


def test_a_file_cut_into_parts_gives_each_line_once(
    tmp_path: Path, recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(rows(40)))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows(40)), tmp_path / "b.parquet", row_group_size=3)
    whole = texts(tmp_path, recipe(tmp_path))
    for size in (1, 63, 64, 65, 1000):  # the first lines have 64 bytes: a part that ends with a line, and around it
        monkeypatch.setattr(sources, "PART", size)
        assert len(sources.parts(str(tmp_path), recipe(tmp_path), "")) > 2
        assert texts(tmp_path, recipe(tmp_path)) == whole


def test_latin_1_is_read_and_named(tmp_path: Path, recipe: Make) -> None:
    (tmp_path / "a.txt").write_bytes("Žluťoučký café".encode())
    (tmp_path / "b.txt").write_bytes("café, “quoted”".encode("cp1252"))
    (tmp_path / "c.txt").write_bytes(b"\xef\xbb\xbfwith a mark")
    notes: list[str] = []
    read = [document.text for document in found(tmp_path, recipe(tmp_path), notes) if isinstance(document, Document)]
    assert read == ["Žluťoučký café", "café, “quoted”", "with a mark"]
    assert len(notes) == 1 and "b.txt" in notes[0] and "Windows-1252" in notes[0]


def test_bad_lines_are_found_where_they_are(tmp_path: Path, recipe: Make) -> None:
    good = b'{"text": "good"}\n'
    bad = [
        b"{not json}\n",
        b'["a", "list"]\n',
        b'{"body": "elsewhere"}\n',
        b'{"text": 7}\n',
        b'{"text": "caf\xe9"}\n',  # Latin-1
        b'{"text": "half a pair: \\ud83d"}\n',
        b'{"text": " "}\n',
        b'{"text": "cut sh',
    ]
    (tmp_path / "a.jsonl").write_bytes(good + good.join(bad))
    starts = [len(good) * (number + 1) + sum(map(len, bad[:number])) for number in range(len(bad))]
    reasons = ("not_json", "not_json", "no_column", "no_text", "not_utf8", "lone_surrogate", "empty", "not_json")
    expected = [(why, f"a.jsonl, byte {start}") for why, start in zip(reasons, starts, strict=True)]
    assert flaws(tmp_path, recipe(tmp_path)) == expected
    assert texts(tmp_path, recipe(tmp_path)) == ["good"] * len(bad)


def test_a_pair_of_surrogates_in_json_is_one_letter(tmp_path: Path, recipe: Make) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "\\ud83d\\ude42"}\n')
    assert texts(tmp_path, recipe(tmp_path)) == ["🙂"]


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_a_truncated_file_gives_what_is_whole_and_says_so(tmp_path: Path, recipe: Make, kind: str) -> None:
    raw = as_jsonl([{"text": os.urandom(400).hex()} for _ in range(2000)])
    packed = gzip.compress(raw) if kind == "gz" else zstandard.compress(raw)
    (tmp_path / f"a.jsonl.{kind}").write_bytes(packed[: len(packed) // 2])
    assert 100 < len(texts(tmp_path, recipe(tmp_path))) < 2000
    assert ("truncated", f"a.jsonl.{kind}") in flaws(tmp_path, recipe(tmp_path))
    (tmp_path / f"a.jsonl.{kind}").write_bytes(b"not packed at all, but long enough")
    assert flaws(tmp_path, recipe(tmp_path)) == [("damaged", f"a.jsonl.{kind}")]


def test_files_that_are_not_what_they_seem(tmp_path: Path, recipe: Make) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"]}), tmp_path / "b.parquet")
    (tmp_path / "c.txt").write_bytes(b"\x7fELF\x02\x01\x01\x00")
    (tmp_path / "d.txt").write_bytes(b"text \x81\x8d then")
    (tmp_path / "e.txt").write_text(" \n")
    (tmp_path / "f.txt").symlink_to(tmp_path / "vanished")
    (tmp_path / "g.jsonl").write_bytes(b"")
    (tmp_path / "h.txt").write_text("good")
    assert flaws(tmp_path, recipe(tmp_path)) == [
        ("damaged", "a.parquet"),
        ("no_column", "b.parquet"),
        ("not_text", "c.txt"),
        ("not_utf8", "d.txt"),
        ("empty", "e.txt"),
        ("unreadable", "f.txt"),
    ]
    assert texts(tmp_path, recipe(tmp_path)) == ["good"]


def test_a_parquet_text_that_is_not_utf_8_is_found_in_its_row(tmp_path: Path, recipe: Make) -> None:
    raw = pyarrow.array([b"good", b"caf\xe9", b"good"]).cast(pyarrow.binary())
    text = pyarrow.StringArray.from_buffers(3, *raw.buffers()[1:])
    pyarrow.parquet.write_table(pyarrow.table({"text": text}), tmp_path / "a.parquet")
    assert flaws(tmp_path, recipe(tmp_path)) == [("not_utf8", "a.parquet, row 1")]
    assert texts(tmp_path, recipe(tmp_path)) == ["good", "good"]


def test_a_file_that_vanishes_after_the_plan_was_made(tmp_path: Path, recipe: Make) -> None:
    for name in ("a.txt", "b.jsonl", "c.parquet", "d.jsonl.gz"):
        (tmp_path / name).write_text("x")
    parts = sources.parts(str(tmp_path), recipe(tmp_path), "")
    for path in tmp_path.iterdir():
        path.unlink()
    reasons = [flaw.reason for part in parts for flaw in sources.documents(part, recipe(tmp_path))]
    assert reasons == ["unreadable"] * 4


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path, recipe: Make) -> None:
    (tmp_path / "a.txt").write_text("secret")
    (tmp_path / "a.txt").chmod(0)
    assert flaws(tmp_path, recipe(tmp_path)) == [("unreadable", "a.txt")]


def test_a_missing_or_wordless_source_is_refused(tmp_path: Path, recipe: Make) -> None:
    with pytest.raises(KodaError, match="does not exist"):
        texts(tmp_path / "nowhere", recipe(tmp_path))
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    with pytest.raises(KodaError, match="holds no text"):
        texts(tmp_path, recipe(tmp_path))


def test_files_are_known_by_what_they_hold(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    before = sources.fingerprint(str(tmp_path))
    os.utime(tmp_path / "a.txt", (1, 1))
    assert sources.fingerprint(str(tmp_path)) == before
    (tmp_path / "a.txt").write_text("two")
    assert sources.fingerprint(str(tmp_path)) != before


def test_docs_read_docstrings_and_run_nothing(tmp_path: Path) -> None:
    path = tmp_path / "loud.py"
    path.write_text('"""A module."""\nraise SystemExit\ndef f(x):\n    """What f does."""\nclass C:\n    """C."""\n')
    assert docs.entries("loud", path) == [("loud", "A module."), ("loud.f", "What f does."), ("loud.C", "C.")]


def test_docs_of_the_standard_library() -> None:
    read = dict(docs.documents("docs:stdlib", 2))
    assert "os.path" not in read and "Join two or more pathname components" in read["posixpath"]
    assert "topics.while" in read
    assert docs.fingerprint("docs:stdlib") != docs.fingerprint("docs:stdlib,numpy")
    with pytest.raises(KodaError, match="'nopackage' is installed"):
        docs.fingerprint("docs:nopackage")


def test_a_hub_data_set_is_streamed_by_its_parts(tmp_path: Path) -> None:
    """`datasets` reads a folder laid out as on the Hub by the same code as the Hub's own."""
    (tmp_path / "train").mkdir()
    for number in range(3):
        (tmp_path / "train" / f"{number}.jsonl.zst").write_bytes(
            zstandard.compress(as_jsonl([{"text": f"{number}.{row}"} for row in range(4)]))
        )
    name = str(tmp_path)
    count = hub.shards(name, None, "train", None)
    parts = [list(hub.rows(name, None, "train", None, index)) for index in range(count)]
    assert [[row["text"] for _, row in part] for part in parts] == [
        [f"{number}.{row}" for row in range(4)] for number in range(3)
    ]
    with pytest.raises(KodaError, match="split 'test'"):
        hub.shards(name, None, "test", None)


def test_a_hub_source_without_a_network_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(KodaError, match="hf download --repo-type dataset user/text --revision v1") as caught:
        hub.commit("hub:user/text@v1")
    assert "\n" not in str(caught.value)


def test_how_hub_data_sets_are_named() -> None:
    assert hub.named("hub:text") == ("text", None, None)
    assert hub.named("hub:user/text@v1") == ("user/text", None, "v1")
    assert hub.named("hub:user/text/english@main") == ("user/text", "english", "main")
    for wrong in ("hub:", "hub:/x", "hub:a/b/c/d"):
        with pytest.raises(KodaError, match="hub:USER/NAME"):
            hub.named(wrong)
