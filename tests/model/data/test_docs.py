from collections.abc import Callable
from pathlib import Path

import pytest

from model.data import docs
from model.data.docs import LONGEST, SECTION, SHORTEST, Entry
from model.data.document import Document
from model.data.heldout import is_heldout
from model.errors import KodaError

Install = Callable[..., list[Document]]


def sentences(topic: str, characters: int) -> str:
    """A paragraph of different sentences about a topic, of at least so many characters."""
    lines: list[str] = []
    while sum(map(len, lines)) < characters:
        lines.append(f"Sentence {len(lines)} is about {topic}.")
    return "\n".join(lines)


def function(name: str, text: str) -> str:
    return f"def {name}():\n    '''{text}'''\n"


def words(documents: list[Document]) -> list[str]:
    return " ".join(document.text for document in documents).split()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """The documents of modules with these sources, in the place of those installed."""

    def documents(workers: int = 1, **sources: str) -> list[Document]:
        for name, source in sources.items():
            (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.setattr(docs, "topics", lambda: iter(()))
        monkeypatch.setattr(docs, "modules", lambda names: [(name, tmp_path / f"{name}.py") for name in sources])
        return list(docs.documents("docs", workers))

    return documents


@pytest.fixture(scope="module")
def stdlib() -> list[Document]:
    return list(docs.documents("docs:stdlib", 2))


def test_docstrings_are_read_and_nothing_runs(tmp_path: Path) -> None:
    path = tmp_path / "loud.py"
    path.write_text('"""A module."""\nraise SystemExit\ndef f(x):\n    """What f does."""\nclass C:\n    """C."""\n')
    assert docs.entries("loud", path) == [("loud", "A module."), ("loud.f", "What f does."), ("loud.C", "C.")]


def test_the_standard_library_and_its_help_topics_are_documents(stdlib: list[Document]) -> None:
    posixpath = [text for name, text in stdlib if name.startswith("posixpath")]
    assert any("Join two or more pathname components" in text for text in posixpath)
    names = {name for name, _ in stdlib}
    assert {"topics.while", "json.decoder"} <= names and "os.path" not in names


def test_the_fingerprint_changes_with_the_packages() -> None:
    assert docs.fingerprint("docs:stdlib") != docs.fingerprint("docs:stdlib,numpy")
    with pytest.raises(KodaError, match="'nopackage' is installed"):
        docs.fingerprint("docs:nopackage")


def test_sections_keep_every_word_in_order() -> None:
    """Conservation: the sections of a module or topic have the words of its entries, none lost and none twice."""
    modules = [docs.entries(*module) for module in docs.modules(frozenset({"stdlib"}))[::5]]
    modules += [[Entry(*topic)] for topic in docs.topics()]
    assert max(sum(len(entry.text) for entry in module) for module in modules) > 5 * LONGEST
    for module in modules:
        assert words(docs.sections(module)) == " ".join(entry.text for entry in module).split()


def test_a_short_module_is_one_document(install: Install) -> None:
    [document] = install(short="".join(function(f"f{n}", sentences(f"f{n}", SECTION // 4)) for n in range(4)))
    assert document.name == "short.f0" and document.text.count("\n\n") == 3


def test_a_module_with_little_text_is_left_out(install: Install) -> None:
    assert not install(little="'''Little.'''", empty="x = 1")
    assert len(install(enough=f"'''{sentences('it', SHORTEST)}'''")) == 1


def test_a_class_stays_together_with_its_methods(install: Install) -> None:
    methods = "".join(f"    {function(f'm{n}', sentences(f'm{n}', SECTION // 5))}" for n in range(7))
    methods = methods.replace("\n    '''", "\n        '''")
    before, after = function("before", sentences("f", SECTION)), function("after", sentences("g", SECTION))
    documents = install(shop=f"{before}class Shop:\n    '''A shop.'''\n{methods}{after}")
    assert [document.name for document in documents] == ["shop.before", "shop.Shop", "shop.after"]
    assert documents[1].text.startswith("shop.Shop\nA shop.\n\nshop.Shop.m0\n") and "shop.Shop.m6" in documents[1].text


def test_short_docstrings_are_joined_with_their_neighbours(install: Install) -> None:
    documents = install(many="".join(function(f"f{n:02}", sentences(f"f{n:02}", SECTION // 5)) for n in range(33)))
    sizes = [len(document.text) for document in documents]
    assert len(documents) > 4 and min(sizes) >= SECTION and max(sizes) < 2 * SECTION + SECTION // 4
    assert [document.name for document in documents] == sorted({document.name for document in documents})


def test_a_long_docstring_is_cut_at_its_headings(install: Install) -> None:
    long, short = sentences("it", SECTION), sentences("more of it", SECTION // 5)
    chapters = "\n\n".join(f"Chapter {n}\n=========\n\n{long} {n}\n\n{short} {n}" for n in range(4))
    documents = install(book=f"'''The book.\n\n{chapters}'''")
    assert [name for name, _ in documents] == ["book", "book, part 2", "book, part 3", "book, part 4"]
    assert [text.split("\n")[0] for _, text in documents] == ["book", "Chapter 1", "Chapter 2", "Chapter 3"]
    chapter = chapters[: LONGEST - 100].strip()
    assert install(book=f"'''{chapter}'''") == [("book", f"book\n{chapter}")]


def test_a_long_docstring_without_headings_is_cut_at_blank_lines(install: Install) -> None:
    paragraphs = [sentences(f"paragraph {n}", LONGEST // 3) for n in range(6)]
    documents = install(long="'''{}'''".format("\n\n".join(paragraphs)))
    pairs = ["\n\n".join(paragraphs[n : n + 2]) for n in (0, 2, 4)]
    assert [text for _, text in documents] == [f"long\n{pairs[0]}", *pairs[1:]]


def test_a_property_and_its_setter_are_read_though_they_share_a_name(install: Install) -> None:
    methods = "".join(f"    def p(self):\n        '''{sentences(f'p{n}', LONGEST)}'''\n" for n in range(2))
    assert [name for name, _ in install(prop=f"class C:\n{methods}")] == ["prop.C.p", "prop.C.p, part 2"]


def test_a_repeated_paragraph_is_kept_once(install: Install) -> None:
    repeated, own = sentences("all", SHORTEST), sentences("this alone", SHORTEST)
    documents = install(a=f"'''{repeated}'''", b=f"'''{repeated}\n\n{own}'''", c=f"'''{repeated}'''")
    assert documents == [("a", f"a\n{repeated}"), ("b", f"b\n{own}")]


def test_documents_do_not_depend_on_the_number_of_workers(install: Install) -> None:
    sources = {f"m{n}": f"'''{sentences(f'module {n}', SECTION)}'''" for n in range(100)}
    assert install(1, **sources) == install(2, **sources)


def test_no_section_is_a_large_share_of_the_heldout_text(stdlib: list[Document]) -> None:
    """Bits per byte of held-out text must not depend on a few documents."""
    heldout = [text for _, text in stdlib if is_heldout(text, 0.05)]
    assert len(heldout) > 30 and max(map(len, heldout)) < 0.1 * sum(map(len, heldout))
