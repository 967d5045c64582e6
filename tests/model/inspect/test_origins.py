"""Which of an answer's words are in the training text."""

from pathlib import Path

import numpy as np
import pytest

from model.data import tokenizer as tokenizers
from model.data.recipe import Recipe
from model.data.shards import STARTS, TRAINED, Shards, ShardWriter
from model.data.vocabulary import Vocabulary
from model.inspect import spans
from model.inspect.origins import origins
from model.inspect.pieces import pieces_of
from tests.model.data.conftest import PLAIN

PLANTED = "A heron of slate counted eleven doors before the tide came in"


@pytest.fixture(scope="module")
def vocabulary(tokenizer_file: Path) -> Vocabulary:
    return tokenizers.load(str(tokenizer_file))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary, prose: str) -> Path:
    """Documents in files, and the same as small shards, one document with the planted sentence in its middle."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "text").mkdir()
    texts = [prose[n : n + 2_000].strip() for n in range(0, 20_000, 2_000)]
    texts[6] = f"{texts[6][:900]} {PLANTED}. {texts[6][900:]}"
    writer = ShardWriter(folder / "train", vocabulary.size, 3_000)
    for number, text in enumerate(texts):
        (folder / "text" / f"{number}.txt").write_text(text)
        writer.add([*vocabulary.plain(text), vocabulary.end])
    writer.close()
    return folder


def recipe(corpus: Path) -> Recipe:
    return Recipe(**{**PLAIN, "source": {str(corpus / "text"): 1.0}, "cut": "never"})


def test_planted_sentence_is_found_with_its_document(corpus: Path, vocabulary: Vocabulary) -> None:
    answer = vocabulary.plain(f"Zq zq. {PLANTED} xqx")
    found = origins([("a question", answer)], {"tokenize": corpus / "train"}, vocabulary, recipe(corpus))
    assert found.searched == {"tokenize": len(Shards(corpus / "train"))}
    longest = found.answers[0].sources[0]
    assert PLANTED[2:] in longest.words and longest.name.endswith("6.txt")
    pieces = found.answers[0].pieces
    assert "".join(pieces[longest.start : longest.start + longest.length]) == longest.words
    text = (corpus / "text/6.txt").read_text()
    assert longest.before + longest.words + longest.after in text


def test_runs_are_in_the_shards_and_as_long_as_they_can_be(corpus: Path) -> None:
    """Over random pieces of the text and of noise, against a search by brute force."""
    shards, draw = Shards(corpus / "train"), np.random.default_rng(0)
    answer = np.concatenate([shards.read(4_000, 11)[0], draw.integers(0, 512, 9), shards.read(700, 8)[0]])
    found = spans.longest_spans(shards, answer)
    assert {(span.start, span.length) for span in found} >= {(0, 11), (20, 8)}
    for span in found:
        place = shards.read(span.at, span.length)[0]
        assert (place == answer[span.start : span.start + span.length]).all()
        assert span.first <= span.at < span.stop
        longer = answer[span.start : span.start + span.length + 1]
        if len(longer) > span.length:
            windows = np.lib.stride_tricks.sliding_window_view(shards.read(0, len(shards))[0], len(longer))
            assert not (windows == longer).all(-1).any()


def test_runs_do_not_depend_on_how_the_shards_are_cut(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = Shards(corpus / "train")
    answer = shards.read(1_234, 40)[0]
    complete = spans.longest_spans(shards, answer)
    monkeypatch.setattr(spans, "PIECE", 64)
    assert spans.longest_spans(shards, answer) == complete and complete[0].length == 40


@pytest.mark.parametrize("end", ["beginning", "end"])
def test_run_at_the_edge_of_a_document_has_nothing_beside_it(corpus: Path, vocabulary: Vocabulary, end: str) -> None:
    """An answer that repeats how a document begins, or how it ends, with the token that ends it."""
    shards = Shards(corpus / "train")
    second = int(shards.documents()[0][1])
    start = second if end == "beginning" else second - 12
    answer = shards.read(start, 12)[0].tolist()
    found = origins([("", answer)], {"tokenize": corpus / "train"}, vocabulary, None).answers[0].sources[0]
    assert found.length == 12 and (found.before if end == "beginning" else found.after) == ""


def test_rest_of_a_run_that_overlaps_a_longer_one_is_a_run(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, 512, 1_000)
    for document in (range(100, 112), range(110, 140)):
        writer.add([*document, 0])
    writer.close()
    found = spans.longest_spans(Shards(tmp_path), np.arange(100, 140))
    assert [(span.start, span.length) for span in found] == [(10, 30), (0, 10)]


def test_source_that_is_gone_leaves_documents_without_a_name(corpus: Path, vocabulary: Vocabulary) -> None:
    gone = Recipe(**{**PLAIN, "source": {str(corpus / "moved"): 1.0}})
    answer = Shards(corpus / "train").read(50, 20)[0].tolist()
    found = origins([("", answer)], {"tokenize": corpus / "train"}, vocabulary, gone)
    assert found.answers[0].sources[0].name.startswith("“")


def test_conversation_is_the_document_of_its_tokens(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, 512, 1_000, marked=True)
    writer.add([1, 2, 3, 4, 5, 6, 7, 8], [STARTS, 0, 0, TRAINED, STARTS, 0, 0, TRAINED])
    writer.close()
    (span,) = spans.longest_spans(Shards(tmp_path), np.array([6, 7]), least=2)
    assert (span.at, span.first, span.stop) == (5, 4, 8)


def test_pieces_are_the_text(vocabulary: Vocabulary) -> None:
    text = "Straße — naïve 漢字語 🙂 end"
    ids = vocabulary.plain(text)
    pieces = pieces_of(vocabulary, ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces).replace("�", "") == text
