import pytest

from model.data import docs
from model.data.document import Document
from model.evaluation import homemade


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return list(docs.topics())


@pytest.fixture(scope="module")
def made(documents: list[Document]) -> dict[str, list[homemade.Item]]:
    return homemade.items(documents, 40)


def test_there_are_eight_tasks_with_items(made: dict[str, list[homemade.Item]]) -> None:
    assert len(made) == 8
    assert {name: len(items) for name, items in made.items()} == dict.fromkeys(made, 40)


def test_the_same_text_gives_the_same_items(documents: list[Document], made: dict[str, list[homemade.Item]]) -> None:
    assert homemade.items(documents, 40) == made


def test_items_are_well_formed(documents: list[Document], made: dict[str, list[homemade.Item]]) -> None:
    texts = " ".join(document.text for document in documents)
    for name, items in made.items():
        for item in items:
            assert len(item.contexts) == len(item.continuations) > item.gold >= 0, name
            assert all(item.contexts) and all(item.continuations)
            right = item.contexts[item.gold], item.continuations[item.gold]
            questions = list(zip(item.contexts, item.continuations, strict=True))
            assert questions.count(right) == 1, name  # no other choice is the right one too
            if name in ("ending", "word", "word_here", "order", "last_word"):
                assert item.contexts[0] + item.continuations[item.gold] in texts, name


def test_the_right_answer_has_no_place_of_its_own(made: dict[str, list[homemade.Item]]) -> None:
    """A model that always takes the first choice, or the longest, is not far above chance."""
    for name in ("ending", "word", "word_here", "order", "source"):
        items = made[name]
        first = sum(item.gold == 0 for item in items) / len(items)
        lengths = [[len(text) for text in item.continuations] for item in items]
        longest = sum(n.index(max(n)) == item.gold for n, item in zip(lengths, items, strict=True)) / len(items)
        chance = items[0].chance
        margin = 3 * (chance * (1 - chance) / len(items)) ** 0.5
        assert abs(first - chance) < margin and longest - chance < margin, name


def test_too_little_text_gives_fewer_items() -> None:
    assert all(not items for items in homemade.items([Document("a", "Only a few words.")], 10).values())
