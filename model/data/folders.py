"""A folder → the files in it that are read, and a line about those that are not."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from model.data.strings import shown

NAMED = 3  # files in one line; of the others only the number


class Listing(NamedTuple):
    """The files to read, sorted, and notes about what is passed over."""

    paths: list[Path]
    notes: list[str]


def listing(root: Path, suffixes: tuple[str, ...], refuse: Callable[[OSError], None] | None = None) -> Listing:
    """The files with these suffixes, in any case of their letters, in a folder and below it.

    Links to folders are followed, each folder once. Hidden files and folders are passed over (copies that editors,
    notebooks and archivers leave), and so are other suffixes. `refuse` takes the error of a folder that cannot be read.
    """
    paths, hidden, others = list[Path](), list[Path](), list[Path]()
    visited, pending = set[str](), [root]
    while pending:  # links come after the folder that has them, so that a folder is known by its own name
        for folder, folders, names in os.walk(pending.pop(0), onerror=refuse):
            real = os.path.realpath(folder)
            if real in visited:
                folders.clear()
                continue
            visited.add(real)
            hidden += [Path(folder, name) for name in (*folders, *names) if is_hidden(name)]
            folders[:] = sorted(name for name in folders if not is_hidden(name))
            pending += [path for name in folders if (path := Path(folder, name)).is_symlink()]
            for path in (Path(folder, name) for name in names if not is_hidden(name)):
                is_one = path.name.lower().endswith(suffixes) and (path.is_file() or not path.exists())
                (paths if is_one else others).append(path)
    notes = [
        f"{what} and not read ({len(unread):,}): {_named(root, unread)}"
        for unread, what in ((others, "of other kinds"), (hidden, "hidden"))
        if unread
    ]
    return Listing(sorted(paths), notes)


def is_hidden(name: str) -> bool:
    """Is it a file or folder that people do not see?"""
    return name.startswith(".") or name == "__MACOSX"


def _named(root: Path, paths: Sequence[Path]) -> str:
    more = [f"and {len(paths) - NAMED:,} more"] if len(paths) > NAMED else []
    return ", ".join([*(shown(os.path.relpath(path, root)) for path in sorted(paths)[:NAMED]), *more])
