"""Home-made tasks: where their items come from, and that no baseline without a model can solve them.

Letters in names: V vocabulary.
"""

from pathlib import Path

import numpy as np
import pytest

from model.data import docs
from model.data import tokenizer as tokenizers
from model.data.document import Document
from model.data.prepare import heldout_documents, on_this_machine, prepare
from model.data.recipe import Recipe
from model.data.shards import Shards
from model.evaluation import homemade
from model.evaluation.baselines import Unigram, baselines
from model.evaluation.items import Item
from tests.model.data.conftest import PLAIN


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path) -> Path:
    """The output of the tokenize stage for the interpreter's help topics, 0.3 of them held out."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "text").mkdir()
    for topic in docs.topics():
        (folder / "text" / f"{topic.name}.txt").write_text(topic.text)
    changes = {"source": {str(folder / "text"): 1.0}, "tokenizer": str(tokenizer_file), "heldout_fraction": 0.3}
    prepare(folder, Recipe(**{**PLAIN, **changes}), on_this_machine(1), lambda *_: None)
    return folder


@pytest.fixture(scope="module")
def unigram(tokens: Path) -> Unigram:
    return Unigram(tokens)


@pytest.fixture(scope="module")
def tasks(tokens: Path, unigram: Unigram) -> dict[str, list[Item]]:
    return homemade.items(heldout_documents(tokens), unigram, 60)


def test_each_of_eight_tasks_has_items(tasks: dict[str, list[Item]]) -> None:
    assert len(tasks) == 8
    assert all(len(items) >= 30 for items in tasks.values()), {name: len(items) for name, items in tasks.items()}


def test_the_same_text_gives_the_same_items(tokens: Path, tasks: dict[str, list[Item]]) -> None:
    assert homemade.items(heldout_documents(tokens), Unigram(tokens), 60) == tasks


def test_items_are_well_formed(tokens: Path, tasks: dict[str, list[Item]]) -> None:
    texts = " ".join(document.text for document in heldout_documents(tokens))
    for name, items in tasks.items():
        for item in items:
            assert len(item.contexts) == len(item.continuations) > item.gold >= 0, name
            assert all(item.contexts) and all(item.continuations)
            right = item.contexts[item.gold], item.continuations[item.gold]
            questions = list(zip(item.contexts, item.continuations, strict=True))
            assert questions.count(right) == 1, name  # no wrong choice equals the right one
            if name in ("ending", "word", "word_here", "order", "last_word"):
                assert item.contexts[0] + item.continuations[item.gold] in texts, name


def test_items_come_from_documents_that_were_not_trained_on(
    tokens: Path, tokenizer_file: Path, tasks: dict[str, list[Item]]
) -> None:
    """The training documents are read back from the shards: they and the held-out ones are all documents, each once.

    A context is looked for in the held-out documents, not shown to be absent from the training ones: two documents may
    share a paragraph.
    """
    heldout = [document.text for document in heldout_documents(tokens)]
    vocabulary = tokenizers.load(str(tokenizer_file))
    shards = Shards(tokens / "train")
    ids = shards.read(0, len(shards))[0]
    ends = np.flatnonzero(ids == vocabulary.end)
    trained = [vocabulary.tokenizer.decode(part.tolist()) for part in np.split(ids, ends + 1)[:-1]]
    files = {path.read_text() for path in (tokens / "text").iterdir()}
    assert {*heldout, *trained} == files and len(heldout) + len(trained) == len(files) and len(trained) > 20
    for name, items in tasks.items():
        for item in items:
            context = item.contexts[item.gold].partition("\nQuestion: ")[0]
            assert any(context in text for text in heldout), name


def test_length_and_frequency_alone_are_at_chance(tasks: dict[str, list[Item]], unigram: Unigram) -> None:
    """Within three standard errors of chance. Of two baselines on seven tasks, one is outside in 1 of 30 seeds."""
    for name, items in tasks.items():
        if name == "last_word":
            assert baselines(items, unigram) == {"longest": None, "unigram": None}
            continue
        chance = items[0].chance
        margin = 3 * (chance * (1 - chance) / len(items)) ** 0.5
        for kind, accuracy in baselines(items, unigram).items():
            assert accuracy is not None and abs(accuracy - chance) < margin, (name, kind, accuracy)
        first = sum(item.gold == 0 for item in items) / len(items)
        assert abs(first - chance) < margin, name


def test_baselines_detect_items_that_frequency_or_length_gives_away(unigram: Unigram) -> None:
    """The right choice is frequent among rare ones, or long among short ones; a tie counts as a random choice."""
    items = [Item(["It is"] * 2, [" the", " qzx"], 0, 0.5), Item(["It is"] * 2, [" a very long answer", " a"], 0, 0.5)]
    assert baselines(items[:1], unigram)["unigram"] == 1.0 and baselines(items[1:], unigram)["longest"] == 1.0
    tied = [Item(["x"] * 4, [" a"] * 4, 0, 0.25)]
    assert baselines(tied, unigram) == {"longest": 0.25, "unigram": 0.25}


def test_too_little_text_gives_no_items(unigram: Unigram) -> None:
    assert all(not items for items in homemade.items([Document("a", "Only a few words.")], unigram, 10).values())


def test_unigram_probabilities_sum_to_one_and_a_text_is_their_product(unigram: Unigram, tokenizer_file: Path) -> None:
    assert np.exp(unigram.logprobs_V).sum() == pytest.approx(1.0)
    ids = tokenizers.load(str(tokenizer_file)).plain(" the")
    assert unigram(" the") == pytest.approx(unigram.logprobs_V[ids].sum())
