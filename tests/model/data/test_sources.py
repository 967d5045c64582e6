import gzip
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from model.data import hub, sources
from model.data.document import Document, Flaw
from model.data.recipe import Recipe
from model.errors import KodaError

MakeRecipe = Callable[..., Recipe]


def items(source: Path, recipe: Recipe, notes: list[str] | None = None) -> Iterator[Document | Flaw]:
    """The documents and flaws of all parts of a source, in their order."""
    for part in sources.parts(str(source), recipe, ""):
        yield from sources.documents(part, recipe, [].append if notes is None else notes.append)


def texts(source: Path, recipe: Recipe) -> list[str]:
    return [document.text for document in items(source, recipe) if isinstance(document, Document)]


def flaws(source: Path, recipe: Recipe) -> list[tuple[str, str]]:
    """Each flaw's reason, and where it is (without the folder)."""
    return [
        (flaw.reason, flaw.name.replace(f"{source}{os.sep}", "").replace(str(source), ""))
        for flaw in items(source, recipe)
        if isinstance(flaw, Flaw)
    ]


def rows(count: int) -> list[dict[str, object]]:
    return [{"text": f"Row {number} has “this” and that.\nTwice.", "more": number} for number in range(count)]


def as_jsonl(of: list[dict[str, object]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in of).encode()


def test_every_kind_of_file_yields_its_documents_in_order(tmp_path: Path, recipe: MakeRecipe) -> None:
    raw, expected = as_jsonl(rows(50)), [row["text"] for row in rows(50)]
    (tmp_path / "a.jsonl").write_bytes(raw)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(raw))
    frames = zstandard.compress(raw[:1000]) + zstandard.compress(
        raw[1000:]
    )  # two frames, as tools that append write them
    (tmp_path / "c.jsonl.zst").write_bytes(frames)
    table = pyarrow.Table.from_pylist(rows(50))
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet", row_group_size=7)
    (tmp_path / "e.md").write_text("Alone.")
    assert texts(tmp_path, recipe(tmp_path)) == [*expected * 4, "Alone."]


def test_a_file_cut_into_parts_yields_each_line_once(
    tmp_path: Path, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(rows(40)))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows(40)), tmp_path / "b.parquet", row_group_size=3)
    expected = texts(tmp_path, recipe(tmp_path))
    for size in (1, 63, 64, 65, 1000):  # the first lines have 64 bytes: parts end at a line's end, and beside it
        monkeypatch.setattr(sources, "PART", size)
        assert len(sources.parts(str(tmp_path), recipe(tmp_path), "")) > 2
        assert texts(tmp_path, recipe(tmp_path)) == expected


def test_every_kind_of_part_has_a_reader_and_every_reader_a_kind() -> None:
    assert set(sources.READERS) == set(get_args(sources.Kind))


def test_an_unknown_kind_of_part_is_an_error(tmp_path: Path, recipe: MakeRecipe) -> None:
    """It must not be read as a part without documents."""
    unknown: Any = "csv"
    with pytest.raises(KeyError, match="csv"):
        sources.documents(sources.Part(str(tmp_path), unknown), recipe(tmp_path))


@pytest.mark.parametrize("suffix", sources.SUFFIXES)
def test_every_suffix_belongs_to_a_kind_that_reads_it(tmp_path: Path, recipe: MakeRecipe, suffix: str) -> None:
    """An unreadable file of each suffix is reported, so that no kind skips its files silently."""
    (tmp_path / f"a{suffix}").symlink_to(tmp_path / "removed")
    assert flaws(tmp_path, recipe(tmp_path)) == [("unreadable", f"a{suffix}")]


def test_windows_1252_is_read_and_noted(tmp_path: Path, recipe: MakeRecipe) -> None:
    (tmp_path / "a.txt").write_bytes("Žluťoučký café".encode())
    (tmp_path / "b.txt").write_bytes("café, “quoted”".encode("cp1252"))
    (tmp_path / "c.txt").write_bytes(b"\xef\xbb\xbfwith a mark")
    notes: list[str] = []
    documents = [item for item in items(tmp_path, recipe(tmp_path), notes) if isinstance(item, Document)]
    assert [document.text for document in documents] == ["Žluťoučký café", "café, “quoted”", "with a mark"]
    assert len(notes) == 1 and "b.txt" in notes[0] and "Windows-1252" in notes[0]


def test_flaws_name_the_byte_where_each_bad_line_begins(tmp_path: Path, recipe: MakeRecipe) -> None:
    good = b'{"text": "good"}\n'
    bad = [
        b"{not json}\n",
        b'["a", "list"]\n',
        b'{"body": "elsewhere"}\n',
        b'{"\\ud83d": "in half a name"}\n',
        b'{"text": 7}\n',
        b'{"text": "caf\xe9"}\n',  # Latin-1
        b'{"text": "half a pair: \\ud83d"}\n',
        b'{"text": "ab\\u0000c"}\n',
        b'{"text": " "}\n',
        b'{"text": "cut sh',
    ]
    (tmp_path / "a.jsonl").write_bytes(good + good.join(bad))
    starts = [len(good) * (number + 1) + sum(map(len, bad[:number])) for number in range(len(bad))]
    reasons = ["not_json", "not_json", "no_column", "no_column", "no_text", "not_utf8", "lone_surrogate", "not_text"]
    reasons += ["empty", "not_json"]
    expected = [(reason, f"a.jsonl, byte {start}") for reason, start in zip(reasons, starts, strict=True)]
    assert flaws(tmp_path, recipe(tmp_path)) == expected
    assert texts(tmp_path, recipe(tmp_path)) == ["good"] * len(bad)


def test_a_pair_of_surrogates_in_json_is_one_letter(tmp_path: Path, recipe: MakeRecipe) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "\\ud83d\\ude42"}\n')
    assert texts(tmp_path, recipe(tmp_path)) == ["🙂"]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".jsonl.gz", ".json", ".parquet"])
def test_one_rule_for_control_characters_in_files_of_every_kind(
    tmp_path: Path, recipe: MakeRecipe, suffix: str
) -> None:
    """The end-of-file character of DOS is dropped from a text and from a file; all others are refused."""
    file = tmp_path / f"a{suffix}"
    for text, expected in (("abc\n\x1a\n", ["abc\n"]), ("ab\x07c", []), ("a\x1abc", [])):
        if suffix == ".txt":
            file.write_bytes(text.encode())
        elif suffix == ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"text": text}]), file)
        else:
            raw = json.dumps([{"text": text}] if suffix == ".json" else {"text": text}).encode() + b"\r\n\x1a\r\n"
            file.write_bytes(gzip.compress(raw) if suffix == ".jsonl.gz" else raw)
        assert texts(file, recipe(file)) == expected
        assert [reason for reason, _ in flaws(file, recipe(file))] == [] if expected else ["not_text"]


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_a_truncated_file_yields_its_complete_lines_and_a_flaw(tmp_path: Path, recipe: MakeRecipe, kind: str) -> None:
    raw = as_jsonl([{"text": os.urandom(400).hex()} for _ in range(2000)])
    packed = gzip.compress(raw) if kind == "gz" else zstandard.compress(raw)
    (tmp_path / f"a.jsonl.{kind}").write_bytes(packed[: len(packed) // 2])
    assert 100 < len(texts(tmp_path, recipe(tmp_path))) < 2000
    assert ("truncated", f"a.jsonl.{kind}") in flaws(tmp_path, recipe(tmp_path))
    (tmp_path / f"a.jsonl.{kind}").write_bytes(b"not packed at all, but long enough")
    assert flaws(tmp_path, recipe(tmp_path)) == [("damaged", f"a.jsonl.{kind}")]


def test_files_whose_content_does_not_match_their_suffix_are_flaws(tmp_path: Path, recipe: MakeRecipe) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"]}), tmp_path / "b.parquet")
    (tmp_path / "c.txt").write_bytes(b"\x7fELF\x02\x01\x01\x00")
    (tmp_path / "d.txt").write_bytes(b"text \x81\x8d then")
    (tmp_path / "e.txt").write_text(" \n")
    (tmp_path / "f.txt").symlink_to(tmp_path / "removed")
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


def test_a_parquet_text_that_is_not_utf_8_is_a_flaw_of_its_row(tmp_path: Path, recipe: MakeRecipe) -> None:
    raw = pyarrow.array([b"good", b"caf\xe9", b"good"]).cast(pyarrow.binary())
    text = pyarrow.StringArray.from_buffers(3, *raw.buffers()[1:])
    pyarrow.parquet.write_table(pyarrow.table({"text": text}), tmp_path / "a.parquet")
    assert flaws(tmp_path, recipe(tmp_path)) == [("not_utf8", "a.parquet, row 1")]
    assert texts(tmp_path, recipe(tmp_path)) == ["good", "good"]


def test_a_file_removed_after_planning_is_unreadable(tmp_path: Path, recipe: MakeRecipe) -> None:
    for name in ("a.txt", "b.jsonl", "c.parquet", "d.jsonl.gz"):
        (tmp_path / name).write_text("x")
    parts = sources.parts(str(tmp_path), recipe(tmp_path), "")
    for path in tmp_path.iterdir():
        path.unlink()
    reasons = [flaw.reason for part in parts for flaw in sources.documents(part, recipe(tmp_path))]
    assert reasons == ["unreadable"] * 4


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_read_permission_is_unreadable(tmp_path: Path, recipe: MakeRecipe) -> None:
    (tmp_path / "a.txt").write_text("secret")
    (tmp_path / "a.txt").chmod(0)
    assert flaws(tmp_path, recipe(tmp_path)) == [("unreadable", "a.txt")]


def test_a_missing_source_or_one_without_text_is_refused(tmp_path: Path, recipe: MakeRecipe) -> None:
    with pytest.raises(KodaError, match="does not exist"):
        texts(tmp_path / "nowhere", recipe(tmp_path))
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    with pytest.raises(KodaError, match="contains no text"):
        texts(tmp_path, recipe(tmp_path))


@pytest.mark.parametrize("suffix", sources.SUFFIXES)
def test_a_suffix_is_read_in_any_case(tmp_path: Path, recipe: MakeRecipe, suffix: str) -> None:
    name = f"a{suffix.upper()}"
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows(3)), tmp_path / name)
    elif suffix.startswith(".jsonl"):
        packers: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstandard.compress}
        (tmp_path / name).write_bytes(packers.get(suffix[6:], bytes)(as_jsonl(rows(3))))
    else:
        (tmp_path / name).write_text(str(rows(3)[0]["text"]))
    expected = [row["text"] for row in rows(3)] if suffix not in (".txt", ".md") else [rows(3)[0]["text"]]
    for source in (tmp_path, tmp_path / name):
        assert texts(source, recipe(source)) == expected


def test_what_a_folder_has_and_is_not_read_is_noted(tmp_path: Path, recipe: MakeRecipe) -> None:
    (tmp_path / "a.txt").write_text("read")
    for name in ("b.csv", "c.json", "d.txt.gz", "e.zip", "none"):
        (tmp_path / name).write_text("other")
    for name in (".ipynb_checkpoints/a.txt", "__MACOSX/._a.txt", "more/._a.txt", "more/.trash/b.txt", ".hidden.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("hidden")
    os.mkfifo(tmp_path / "pipe.txt")  # reading it would wait for ever
    assert texts(tmp_path, recipe(tmp_path)) == ["read"]
    assert sources.passed_over(str(tmp_path)) == [
        f"{tmp_path}: of other kinds and not read (6): b.csv, c.json, d.txt.gz, and 3 more",
        f"{tmp_path}: hidden and not read (5): .hidden.txt, .ipynb_checkpoints, __MACOSX, and 2 more",
    ]
    assert sources.passed_over(str(tmp_path / "a.txt")) == sources.passed_over("docs") == []


def test_a_hidden_folder_that_is_named_is_read(tmp_path: Path, recipe: MakeRecipe) -> None:
    (tmp_path / ".corpus").mkdir()
    (tmp_path / ".corpus/a.txt").write_text("read")
    assert texts(tmp_path / ".corpus", recipe(tmp_path)) == ["read"]


def test_links_to_folders_are_followed_once(tmp_path: Path, recipe: MakeRecipe) -> None:
    outside, corpus = tmp_path / "outside", tmp_path / "corpus"
    for folder in (outside / "deep", corpus / "own"):
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text(f"in {folder.name}")
    (corpus / "link").symlink_to(outside)
    (corpus / "again").symlink_to(outside / "deep")
    (corpus / "a_link_before").symlink_to(corpus / "own")  # what has a name of its own keeps it
    (outside / "back").symlink_to(corpus)  # a loop
    (corpus / "gone").symlink_to(tmp_path / "removed")
    read = sources.files(str(corpus))
    assert [str(path.relative_to(corpus)) for path in read] == ["again/a.txt", "own/a.txt"]
    assert texts(corpus, recipe(corpus)) == ["in deep", "in own"]


def test_a_name_that_is_not_utf_8_is_read_and_escaped(tmp_path: Path, recipe: MakeRecipe) -> None:
    folder = os.fsencode(tmp_path)
    for name in (b"caf\xe9.txt", b"caf\xe9.jsonl"):
        with open(os.path.join(folder, name), "wb") as file:  # noqa: PTH118, PTH123  # bytes are no Path
            file.write(b"caf\xe9" if name.endswith(b"txt") else b'{"text": "row"}\n{\n')
    notes: list[str] = []
    read = list(items(tmp_path, recipe(tmp_path), notes))
    names = [item.name.removeprefix(f"{tmp_path}/") for item in read]
    assert names == [r"caf\xe9.jsonl, byte 0", r"caf\xe9.jsonl, byte 16", r"caf\xe9.txt"]
    lines = [*names, *notes, *sources.passed_over(str(tmp_path)), sources.fingerprint(str(tmp_path))]
    assert all(line.encode() for line in lines)


def test_a_file_that_is_named_must_be_of_a_kind_that_is_read(tmp_path: Path, recipe: MakeRecipe) -> None:
    (tmp_path / "corpus").write_text("Plain text.")
    assert texts(tmp_path / "corpus", recipe(tmp_path)) == ["Plain text."]
    for name in ("a.csv", "a.txt.gz", "a.json.gz", "a.zip", "a.tar", "a.pdf"):
        (tmp_path / name).write_text("a,b\n1,2\n")
        with pytest.raises(KodaError, match=rf"'{tmp_path}/{name}' is not read: it does not end in \.txt, .*\.json\."):
            texts(tmp_path / name, recipe(tmp_path))


def test_a_json_file_that_is_named_is_an_array_or_lines_of_rows(tmp_path: Path, recipe: MakeRecipe) -> None:
    file, expected = tmp_path / "a.json", [row["text"] for row in rows(5)]
    for raw in (
        as_jsonl(rows(5)),
        json.dumps(rows(5), indent=1).encode(),
        b"\xef\xbb\xbf " + json.dumps(rows(5)).encode(),
    ):
        file.write_bytes(raw)
        assert texts(file, recipe(file)) == expected
    file.write_text('[{"text": "good"}, 7, {"body": "x"}]')
    assert flaws(file, recipe(file)) == [("not_json", ", row 1"), ("no_column", ", row 2")]
    for raw, reason in ((b"[1, 2", "not_json"), (b'["caf\xe9"]', "not_utf8"), (b'{\n"text": 1}\n', "not_json")):
        file.write_bytes(raw)
        assert {name for name, _ in flaws(file, recipe(file))} == {reason}


def test_a_byte_order_mark_is_no_part_of_a_row(tmp_path: Path, recipe: MakeRecipe) -> None:
    mark, raw = b"\xef\xbb\xbf", as_jsonl(rows(3))
    (tmp_path / "a.jsonl").write_bytes(mark + raw + mark + raw + mark)  # two such files, one appended to the other
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(mark + raw))
    assert texts(tmp_path, recipe(tmp_path)) == [row["text"] for row in rows(3)] * 3
    assert flaws(tmp_path, recipe(tmp_path)) == []


def test_the_fingerprint_of_files_depends_on_their_content_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    before = sources.fingerprint(str(tmp_path))
    os.utime(tmp_path / "a.txt", (1, 1))
    assert sources.fingerprint(str(tmp_path)) == before
    (tmp_path / "a.txt").write_text("two")
    assert sources.fingerprint(str(tmp_path)) != before


def test_a_hub_data_set_is_streamed_in_parts(tmp_path: Path) -> None:
    """`datasets` reads a folder with the layout of a Hub repository by the same code as the Hub."""
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


def test_an_unreachable_hub_is_reported_with_the_command_to_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # no server listens there
    with pytest.raises(KodaError, match="hf download --repo-type dataset user/text --revision v1") as raised:
        hub.commit("hub:user/text@v1")
    assert "\n" not in str(raised.value)


def test_a_hub_source_is_parsed_into_name_configuration_and_revision() -> None:
    assert hub.named("hub:text") == ("text", None, None)
    assert hub.named("hub:user/text@v1") == ("user/text", None, "v1")
    assert hub.named("hub:user/text/english@main") == ("user/text", "english", "main")
    for wrong in ("hub:", "hub:/x", "hub:a/b/c/d"):
        with pytest.raises(KodaError, match="hub:USER/NAME"):
            hub.named(wrong)
