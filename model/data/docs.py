"""The documentation that is already on the machine: a corpus that needs no network.

Docstrings of the standard library and of the installed packages, and the interpreter's help topics. Files are parsed
with `ast` and nothing is imported, so that reading them runs no foreign code.
"""

import ast
import importlib.metadata
import platform
import re
import sysconfig
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from model.data.document import Document
from model.errors import KodaError
from model.training.protocol import die_with_parent

SKIPPED_FOLDERS = {"test", "tests", "idlelib", "lib2to3", "__pycache__", "site-packages"}
SHORTEST = 200  # characters; a module with less to say is not a document
PARAGRAPH = re.compile(r"\n[ \t]*\n")


class Entry(NamedTuple):
    """One documented thing: its dotted name and its docstring."""

    name: str
    text: str


def chosen(source: str) -> frozenset[str]:
    """The top-level names in `docs:stdlib,numpy,…`; none for `docs`, which is everything on the machine.

    Raises KodaError for a name that is not installed.
    """
    names = frozenset(filter(None, source.removeprefix("docs").removeprefix(":").split(",")))
    if unknown := sorted(names - {"stdlib"} - set(importlib.metadata.packages_distributions())):
        raise KodaError(
            f"tokenize.source = {source!r}: no package {unknown[0]!r} is installed. It takes `docs` for all that is, "
            "or `docs:` and names such as stdlib,numpy,jax."
        )
    return names


def fingerprint(source: str) -> str:
    """What the corpus depends on: the versions of the interpreter and of the packages that are read, but Koda's own."""
    names, owners = chosen(source), importlib.metadata.packages_distributions()
    packages = {owner for name in names for owner in owners.get(name, [])} if names else set(chain(*owners.values()))
    versions = sorted(f"{name}=={importlib.metadata.version(name)}" for name in packages - {"koda"})
    return " ".join([f"python=={platform.python_version()}", *versions])


def modules(names: frozenset[str] = frozenset()) -> list[tuple[str, Path]]:
    """Dotted name and file of every Python module below these top-level names (none: all there are), in one order."""
    stdlib, *packages = (Path(sysconfig.get_path(key)) for key in ("stdlib", "purelib", "platlib"))
    found = set()
    for root in {stdlib, *packages}:
        if names and root == stdlib and "stdlib" not in names:
            continue
        roots = [root] if root == stdlib or not names else [root / name for name in sorted(names)]
        for path in chain.from_iterable(below.rglob("*.py") for below in roots):
            parts = path.relative_to(root).with_suffix("").parts
            if SKIPPED_FOLDERS.isdisjoint(parts):
                found.add((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return sorted(found)


def entries(name: str, path: Path) -> list[Entry]:
    """Everything documented in one module, from the top down; nothing where the file cannot be read or parsed."""
    try:
        source = path.read_bytes()
        if b'"""' not in source and b"'''" not in source:
            return []
        tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found: list[Entry] = []
    _collect(tree, name, found)
    return found


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
    """One document for each module that has something to say, in the order of the modules' names.

    A paragraph that stood in an earlier one already is left out: generated code repeats itself by the thousand.
    """
    names = chosen(source)
    if not names or "stdlib" in names:
        yield from topics()
    seen: set[str] = set()
    named = modules(names)
    with ExitStack() as stack:
        found: Iterable[list[Entry]] = (entries(*module) for module in named)
        if workers > 1:
            pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=die_with_parent)
            stack.callback(pool.shutdown, cancel_futures=True)
            found = pool.map(entries, *zip(*named, strict=True), chunksize=64)
        for (name, _), module in zip(named, found, strict=True):
            text = "\n\n".join(filter(None, (_fresh(entry, seen) for entry in module)))
            if len(text) >= SHORTEST:
                yield Document(name, text)


def _fresh(entry: Entry, seen: set[str]) -> str:
    """The entry without the paragraphs that were seen before; empty where nothing is left."""
    paragraphs = [p for p in PARAGRAPH.split(entry.text) if p.strip() and p.strip() not in seen]
    seen.update(p.strip() for p in paragraphs)
    return "\n\n".join([f"{entry.name}\n{paragraphs[0]}", *paragraphs[1:]]) if paragraphs else ""
