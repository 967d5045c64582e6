"""The documentation installed on this machine → documents: a corpus that needs no network.

It consists of the docstrings of the standard library and of the installed packages, and of the interpreter's help
topics. Files are parsed with `ast` and not imported, so that reading them runs no foreign code.

A document is a section: a help topic, a short module, a class with its methods, or functions that follow each other in
one module. Sections are of similar size, so that no single one dominates the held-out part.
"""

import ast
import collections
import importlib.metadata
import platform
import re
import sysconfig
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from itertools import chain, groupby
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from model.data.document import Document
from model.errors import KodaError
from model.parent import die_with_parent

SKIPPED_FOLDERS = {"test", "tests", "idlelib", "lib2to3", "__pycache__", "site-packages"}
SHORTEST = 200  # characters; a module with less text is left out
SECTION = 3_000  # characters; shorter units of a module are joined
LONGEST = 6_000  # characters; a longer module or class is cut into its entries, a longer docstring at its headings
PARAGRAPH = re.compile(r"\n[ \t]*\n")
# A title underlined as in reStructuredText, perhaps overlined too, at the beginning of a paragraph.
HEADING = re.compile(r"(?:[^\w\n]+\n)?[^\n]+\n[ \t]*([=\-~^*#])\1{2,}[ \t]*(?:\n|$)")


class Entry(NamedTuple):
    """One documented thing: its dotted name and its docstring."""

    name: str
    text: str


def chosen(source: str) -> frozenset[str]:
    """The top-level names in `docs:stdlib,numpy,…`; empty for `docs`, which is everything on the machine.

    Raises KodaError for a name that is not installed.
    """
    names = frozenset(filter(None, source.removeprefix("docs").removeprefix(":").split(",")))
    if unknown := sorted(names - {"stdlib"} - set(importlib.metadata.packages_distributions())):
        raise KodaError(
            f"tokenize.source = {source!r}: no package {unknown[0]!r} is installed. Use `docs` for all installed "
            "packages, or `docs:` and names such as stdlib,numpy,jax."
        )
    return names


def fingerprint(source: str) -> str:
    """What the corpus depends on: the versions of the interpreter and of the packages read, except Koda's own."""
    names, owners = chosen(source), importlib.metadata.packages_distributions()
    packages = {owner for name in names for owner in owners.get(name, [])} if names else set(chain(*owners.values()))
    versions = sorted(f"{name}=={importlib.metadata.version(name)}" for name in packages - {"koda"})
    return " ".join([f"python=={platform.python_version()}", *versions])


def modules(names: frozenset[str] = frozenset()) -> list[tuple[str, Path]]:
    """Dotted name and file of every Python module below these top-level names (empty: all installed), sorted."""
    stdlib, *packages = (Path(sysconfig.get_path(key)) for key in ("stdlib", "purelib", "platlib"))
    files = set()
    for root in {stdlib, *packages}:
        if names and root == stdlib and "stdlib" not in names:
            continue
        roots = [root] if root == stdlib or not names else [root / name for name in sorted(names)]
        for path in chain.from_iterable(below.rglob("*.py") for below in roots):
            parts = path.relative_to(root).with_suffix("").parts
            if SKIPPED_FOLDERS.isdisjoint(parts):
                files.add((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return sorted(files)


def entries(name: str, path: Path) -> list[Entry]:
    """Everything documented in one module, from the top down; empty where the file cannot be read or parsed."""
    try:
        source = path.read_bytes()
        if b'"""' not in source and b"'''" not in source:
            return []
        tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    collected: list[Entry] = []
    _collect(tree, name, collected)
    return collected


def _collect(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str, into: list[Entry]
) -> None:
    text = ast.get_docstring(node, clean=True)
    if text:
        into.append(Entry(name, text.strip()))
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            _collect(child, f"{name}.{child.name}", into)


def topics() -> Iterator[Document]:
    """The interpreter's help topics (what `help('LOOPING')` shows)."""
    path = Path(sysconfig.get_path("stdlib")) / "pydoc_data" / "topics.py"
    if not path.is_file():
        return
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for title, text in ast.literal_eval(node.value).items():
                yield Document(f"topics.{title}", text)


def documents(source: str, workers: int) -> Iterator[Document]:
    """The sections of every help topic and of every module, in the order of the modules' names.

    A paragraph that occurred in an earlier topic or module is left out: generated code repeats the same docstrings
    thousands of times, and help topics contain one another.
    """
    names = chosen(source)
    seen: set[str] = set()
    if not names or "stdlib" in names:
        for name, text in topics():
            if fresh_text := _fresh(text, seen):
                yield from sections([Entry(name, fresh_text)])
    named = modules(names)
    with ExitStack() as stack:
        read: Iterable[list[Entry]] = (entries(*module) for module in named)
        if workers > 1:
            pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=die_with_parent)
            stack.callback(pool.shutdown, cancel_futures=True)
            read = pool.map(entries, *zip(*named, strict=True), chunksize=64)
        for module in read:
            fresh = [Entry(e.name, f"{e.name}\n{text}") for e in module if (text := _fresh(e.text, seen))]
            if _length(fresh) >= SHORTEST:
                yield from sections(fresh)


def sections(module: list[Entry]) -> list[Document]:
    """The entries of one module as documents: no word lost, in the order of the source.

    Units that follow each other are joined until they have SECTION characters; a shorter rest joins the last section.
    """
    groups: list[list[Entry]] = []
    for unit in _units(module):
        if not groups or _length(groups[-1]) >= SECTION:
            groups.append([])
        groups[-1].append(unit)
    if len(groups) > 1 and _length(groups[-1]) < SECTION:
        rest = groups.pop()
        groups[-1] += rest
    counts: collections.Counter[str] = collections.Counter()
    named = []
    for group in groups:
        name = group[0].name
        counts[name] += 1
        named.append(Document(name if counts[name] == 1 else f"{name}, part {counts[name]}", _text(group)))
    return named


def _units(group: list[Entry], depth: int = 0) -> Iterator[Entry]:
    """The smallest pieces of text that stay together: a module or class up to LONGEST, else each entry of it.

    `depth` is how many components of their dotted names the entries have in common.
    """
    if len(group) > 1 and _length(group) <= LONGEST:
        yield Entry(group[0].name, _text(group))
    elif len({entry.name for entry in group}) == 1:  # one entry, or a property and its setter
        yield from (Entry(entry.name, piece) for entry in group for piece in _pieces(entry.text))
    else:
        for _, inner in groupby(group, key=lambda entry: entry.name.split(".")[: depth + 1]):
            yield from _units(list(inner), depth + 1)


def _pieces(text: str) -> Iterator[str]:
    """A text longer than LONGEST cut before each heading; what is still longer is cut at each blank line."""
    if len(text) <= LONGEST:
        yield text
        return
    pieces: list[list[str]] = [[]]
    for paragraph in PARAGRAPH.split(text):
        if pieces[-1] and HEADING.match(paragraph):
            pieces.append([])
        pieces[-1].append(paragraph)
    for piece in pieces:
        whole = "\n\n".join(piece)
        yield from [whole] if len(whole) <= LONGEST else piece


def _text(group: list[Entry]) -> str:
    return "\n\n".join(entry.text for entry in group)


def _length(group: list[Entry]) -> int:
    return len(_text(group))


def _fresh(text: str, seen: set[str]) -> str:
    """A text without the paragraphs seen before; empty where no paragraph is left."""
    paragraphs = [p for p in PARAGRAPH.split(text) if p.strip() and p.strip() not in seen]
    seen.update(p.strip() for p in paragraphs)
    return "\n\n".join(paragraphs)
