import gzip
import json
import os
import random
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer

from model.data import blocks, sources
from model.data.assembly import Seen
from model.data.blocks import Report, Work
from model.data.heldout import is_heldout
from model.data.prepare import heldout_documents, in_order, on_this_machine
from model.data.shards import Shards
from model.errors import KodaError
from model.files import listing
from tests.model.data.conftest import Prepare


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts and blocks of a few documents."""
    monkeypatch.setattr(sources, "PART", 6000)
    monkeypatch.setattr(blocks, "CHARACTERS", 3000)


def here(works: Iterator[Work]) -> Generator[Report, None, None]:
    yield from map(blocks.fill, works)


def text_of(number: int) -> str:
    return f"Document number {number} has this\u2028and that.\x85\r\n" * (5 + number % 30)


def corpus(folder: Path, documents: int) -> Path:
    """Documents, half in files of their own, half in JSONL, plain and compressed."""
    folder.mkdir()
    for number in range(documents // 2):
        (folder / f"{number:03}.txt").write_bytes(text_of(number).encode())
    lines = [json.dumps({"text": text_of(number)}) + "\n" for number in range(documents // 2, documents)]
    (folder / "m.jsonl").write_text("".join(lines[::2]))
    (folder / "n.jsonl.gz").write_bytes(gzip.compress("".join(lines[1::2]).encode()))
    return folder


def size(texts: list[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def pieces(out: Path, part: str) -> list[str]:
    """The decoded documents of the shards, in their order."""
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    shards = Shards(out / part)
    documents, end = [[]], tokenizer.token_to_id("<|endoftext|>")
    for token in shards.read(0, len(shards))[0].tolist():
        documents[-1].append(token) if token != end else documents.append([])
    return [tokenizer.decode(ids) for ids in documents[:-1]]


def test_every_document_is_in_exactly_one_part(tmp_path: Path, prepared: Prepare) -> None:
    figures = prepared(corpus(tmp_path / "text", 80), tmp_path / "out", here)
    texts = [document.text for document in heldout_documents(tmp_path / "out")]
    assert 0 < len(texts) == figures.heldout_documents < 80 == figures.documents
    train, heldout = pieces(tmp_path / "out", "train"), pieces(tmp_path / "out", "heldout")
    assert heldout == texts
    assert sorted(train + heldout) == sorted(text_of(number) for number in range(80))
    assert not set(train) & set(heldout)
    assert figures.train_bytes == size(train) and figures.heldout_bytes == size(heldout)


def test_shards_record_where_documents_start(tmp_path: Path, prepared: Prepare) -> None:
    figures = prepared(corpus(tmp_path / "text", 80), tmp_path / "out", here)
    shards = Shards(tmp_path / "out/train")
    starts = np.concatenate(
        [
            np.load(tmp_path / "out/train" / shard["file"].replace(".npy", ".starts.npy")).astype(int) + begin
            for shard, begin in zip(shards.manifest["shards"], shards.starts[:-1], strict=True)
        ]
    )
    ends = np.flatnonzero(shards.read(0, len(shards))[0] == figures.end_of_text)
    assert len(shards.tokens) > 3
    np.testing.assert_array_equal(starts, [0, *ends[:-1] + 1])


def test_a_document_stays_in_its_part_as_the_corpus_grows(tmp_path: Path, prepared: Prepare) -> None:
    prepared(corpus(tmp_path / "text", 60), tmp_path / "out", here)
    before = {d.text for d in heldout_documents(tmp_path / "out")}
    (tmp_path / "text" / "more.txt").write_text("One more document. " * 20)
    prepared(tmp_path / "text", tmp_path / "again", here)
    after = {d.text for d in heldout_documents(tmp_path / "again")}
    assert before <= after
    assert all(is_heldout(text, 0.2) for text in after)


class Killed(Exception):
    pass


def test_interruptions_do_not_change_the_output(
    tmp_path: Path, prepared: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupt after a random number of completed files, and start again until an attempt completes."""
    import model.files

    source = corpus(tmp_path / "text", 80)
    prepared(source, tmp_path / "uninterrupted", here, shard_tokens=4000)
    expected = listing(tmp_path / "uninterrupted")
    replace, budget, interruptions = model.files.Path.replace, [0], 0

    def replace_or_kill(self: Path, target: Path) -> Path:
        budget[0] -= 1
        if budget[0] < 0:
            raise Killed
        return replace(self, target)

    monkeypatch.setattr(model.files.Path, "replace", replace_or_kill)
    draw = random.Random(0)
    while interruptions < 1000:
        budget[0] = draw.randint(3, 10)
        try:
            prepared(source, tmp_path / "interrupted", here, shard_tokens=4000)
            break
        except Killed:
            interruptions += 1
    assert interruptions > 4
    assert listing(tmp_path / "interrupted") == expected


def test_worker_processes_do_not_change_the_output(tmp_path: Path, prepared: Prepare) -> None:
    source = corpus(tmp_path / "text", 80)
    for name, spread in (("here", here), ("processes", on_this_machine(2))):
        prepared(source, tmp_path / name, spread)
    assert listing(tmp_path / "here") == listing(tmp_path / "processes")


def test_results_come_in_order_and_work_is_submitted_a_little_ahead() -> None:
    submitted: list[int] = []

    class Future:
        def __init__(self, work: int):
            submitted.append(work)
            self.work = work

        def result(self) -> int:
            return self.work

    results = in_order(iter(range(100)), Future, ahead=5)
    assert [next(results) for _ in range(10)] == list(range(10))
    assert len(submitted) <= 15


def test_copies_are_left_out_and_counted(tmp_path: Path, prepared: Prepare) -> None:
    source = corpus(tmp_path / "text", 40)
    plain = prepared(source, tmp_path / "plain", here)
    lines = "".join(json.dumps({"text": text_of(number)}) + "\n" for number in [*range(40), 0, 0, 1])
    (source / "z.jsonl").write_text(lines)
    figures = prepared(source, tmp_path / "out", here)
    assert figures.dropped == {"duplicate": 43} and figures.documents == 40
    assert figures.train_tokens == plain.train_tokens
    kept = prepared(source, tmp_path / "kept", here, deduplicate=False)
    assert kept.documents == 83 and kept.copies == 43 and kept.dropped == {}


def test_the_set_of_hashes_equals_a_python_set() -> None:
    seen, known = Seen(), set()
    draw = np.random.default_rng(0)
    for _ in range(200):
        hashes = draw.integers(0, 3000, draw.integers(0, 60)).astype(np.uint64)
        expected = []
        for value in hashes.tolist():
            expected.append(value not in known)
            known.add(value)
        assert seen.add(hashes).tolist() == expected


def test_a_weight_repeats_a_source_or_selects_a_share_of_it(tmp_path: Path, prepared: Prepare) -> None:
    few, many = corpus(tmp_path / "few", 30), tmp_path / "many"
    many.mkdir()
    for number in range(200):
        (many / f"{number}.txt").write_bytes(f"Another {text_of(number)}".encode())
    figures = prepared({str(few): 2.0, str(many): 0.25}, tmp_path / "out", here)
    train = pieces(tmp_path / "out", "train")
    copies = [sum(text == text_of(number) for text in train) for number in range(30)]
    assert set(copies) == {0, 2} and copies.count(0) == sum(is_heldout(text_of(n), 0.2) for n in range(30))
    share = sum(text.startswith("Another") for text in train) / 200
    assert 0.1 < share < 0.3  # a quarter of four fifths
    heldout = [document.text for document in heldout_documents(tmp_path / "out")]
    assert len(heldout) == len(set(heldout)) == figures.heldout_documents
    assert figures.train_bytes == size(train)


def test_a_limit_keeps_the_first_documents_of_each_source(tmp_path: Path, prepared: Prepare) -> None:
    one, other = corpus(tmp_path / "one", 60), tmp_path / "other"
    other.mkdir()
    (other / "a.txt").write_text("A single one.")
    figures = prepared({str(one): 1.0, str(other): 1.0}, tmp_path / "out", here, limit=33)
    assert figures.documents == 34
    texts = {*pieces(tmp_path / "out", "train"), *pieces(tmp_path / "out", "heldout")}
    assert texts == {*(text_of(number) for number in (*range(30), 30, 32, 34)), "A single one."}


def test_bad_input_is_refused_or_counted(tmp_path: Path, prepared: Prepare) -> None:
    source = corpus(tmp_path / "text", 40)
    (source / "x.jsonl").write_text('{"text": "fine"}\nnot json\n{"\\ud83d": ""}\n')
    with pytest.raises(KodaError, match=r"x\.jsonl, byte 17: the line is not JSON .*tokenize\.bad_input=skip"):
        prepared(source, tmp_path / "out", here)
    figures = prepared(source, tmp_path / "out", here, bad_input="skip")
    assert figures.dropped == {"no_column": 1, "not_json": 1} and figures.documents == 41
    first, second = json.loads((tmp_path / "out/notes.json").read_text())
    assert "x.jsonl, byte 17" in first and "only \\ud83d" in second


def test_names_that_are_not_utf_8_and_files_that_are_not_read_are_in_the_notes(
    tmp_path: Path, prepared: Prepare
) -> None:
    source = corpus(tmp_path / "text", 40)
    (source / "table.csv").write_text("a,b")
    os.rename(os.fsencode(source / "000.txt"), os.fsencode(source) + b"/caf\xe9.txt")  # noqa: PTH104  # bytes
    with open(os.fsencode(source) + b"/b\xe9.txt", "wb") as file:  # noqa: PTH123
        file.write(b"caf\xe9")
    figures = prepared(source, tmp_path / "out", on_this_machine(1))
    assert figures.documents == 41 and figures.notes == 2
    assert json.loads((tmp_path / "out/notes.json").read_text()) == [
        f"{source}: of other kinds and not read (1): table.csv",
        f"{source}/b\\xe9.txt is not UTF-8 and was read as Windows-1252",
    ]


def test_a_source_of_empty_files_is_refused(tmp_path: Path, prepared: Prepare) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text(" \n")
    with pytest.raises(KodaError, match=r"is empty.*1 empty"):
        prepared(tmp_path / "text", tmp_path / "out", here)


def test_tokenizers_encodes_the_whole_corpus_where_tiktoken_differs(
    tmp_path: Path, prepared: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault injection: a pattern that splits one word differently, which no hard string contains."""
    from model.data import encoder

    source = corpus(tmp_path / "text", 80)
    (source / "000.txt").write_text("some xyzzy " * 500)
    expected = prepared(source, tmp_path / "right", here)
    blocks._encoder.cache_clear()
    monkeypatch.setattr(encoder, "PATTERN", f" xyz|{encoder.PATTERN}")
    figures = prepared(source, tmp_path / "out", here)
    blocks._encoder.cache_clear()
    assert expected.encoder == "tiktoken" and figures.encoder == "tokenizers"
    assert "000.txt to different token ids" in figures.encoder_why
    assert listing(tmp_path / "out") == listing(tmp_path / "right")


def test_a_line_of_a_hundred_megabytes_is_one_document(
    tmp_path: Path, prepared: Prepare, prose: str, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "PART", 8 << 20)
    source = corpus(tmp_path / "text", 20)
    line = json.dumps({"text": prose * (100_000_000 // len(prose))})
    (source / "x.jsonl").write_text(line + "\n")
    figures = prepared(source, tmp_path / "out", here, shard_tokens=1 << 24, tokenizer=str(tokenizer_file))
    assert figures.longest_document > 95_000_000 and figures.documents == 21


def test_temporary_files_of_a_killed_attempt_are_removed(tmp_path: Path, prepared: Prepare) -> None:
    source = corpus(tmp_path / "text", 20)
    prepared(source, tmp_path / "uninterrupted", here)
    (tmp_path / "out/train").mkdir(parents=True)
    (tmp_path / "out/train/.00000.npy.4711").write_bytes(b"incomplete")
    prepared(source, tmp_path / "out", here)
    assert listing(tmp_path / "out") == listing(tmp_path / "uninterrupted")


def test_a_kill_during_the_final_cleanup_does_not_change_the_output(
    tmp_path: Path, prepared: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output is complete and some blocks are removed: the next attempt rebuilds the same bytes."""
    import shutil

    source = corpus(tmp_path / "text", 40)
    prepared(source, tmp_path / "uninterrupted", here)
    remove = shutil.rmtree

    def remove_one(folder: Path, ignore_errors: bool = False) -> None:
        if ignore_errors:
            remove(folder, ignore_errors=True)
            return
        next(folder.rglob("*.npz")).unlink()
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(shutil, "rmtree", remove_one)
        prepared(source, tmp_path / "out", here)
    prepared(source, tmp_path / "out", here)
    assert listing(tmp_path / "out") == listing(tmp_path / "uninterrupted")


def ahead(works: Iterator[Work]) -> Generator[Report, None, None]:
    """All work is done before the first report is taken."""
    yield from [blocks.fill(work) for work in [*works]]


def test_input_after_the_limit_is_neither_refused_nor_counted(tmp_path: Path, prepared: Prepare) -> None:
    """A bad line after the limit has no effect, however far the workers read ahead."""
    source = tmp_path / "text"
    source.mkdir()
    for number in range(10):
        lines = [json.dumps({"text": text_of(10 * number + line)}) for line in range(10)]
        (source / f"{number}.jsonl").write_text("\n".join(lines + ["not json"] * (number == 6)) + "\n")
    figures = [prepared(source, tmp_path / spread.__name__, spread, limit=30) for spread in (here, ahead)]
    assert figures[0] == figures[1] and figures[0].documents == 30
    assert listing(tmp_path / "here") == listing(tmp_path / "ahead")


def test_a_limit_counts_copies_once(tmp_path: Path, prepared: Prepare) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text_of(n // 10)}) + "\n" for n in range(400)))
    assert prepared(tmp_path / "a.jsonl", tmp_path / "out", here, limit=30).documents == 30


def test_a_tokenizer_with_added_words_is_not_run_by_tiktoken(
    tmp_path: Path, prepared: Prepare, tokenizer_file: Path
) -> None:
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.add_tokens([AddedToken("<|user|>", special=False)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    figures = prepared(corpus(tmp_path / "text", 20), tmp_path / "out", here, tokenizer=str(tmp_path))
    assert figures.encoder == "tokenizers" and "not bytes and merges alone" in figures.encoder_why


def test_only_the_first_notes_of_a_kind_are_kept_and_the_others_counted(tmp_path: Path, prepared: Prepare) -> None:
    (tmp_path / "text").mkdir()
    for number in range(30):
        (tmp_path / "text" / f"{number:02}.txt").write_bytes(f"caf\xe9 number {number}".encode("cp1252"))
    figures = prepared(tmp_path / "text", tmp_path / "out", here)
    notes = json.loads((tmp_path / "out/notes.json").read_text())
    assert (
        figures.notes == 30 and len(notes) == 21 and notes[-1] == "… and 10 more read as Windows-1252 in the same part"
    )
