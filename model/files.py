"""Files that are either whole or not there."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from model.errors import KodaError

CHECKSUMS = "CHECKSUMS"


@contextmanager
def finished(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that gets its name only when the block ends well.

    It is written beside its place, flushed to disk and renamed. If the block fails, what stood there before still does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what `finished` was writing below `folder` when its process was killed; nobody else may write there."""
    for path in folder.rglob(".*"):
        if path.suffix[1:].isdecimal() and path.is_file():
            path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON a person can read; whole or not at all."""
    with finished(path) as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.write("\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def listing(folder: Path) -> dict[str, dict[str, Any]]:
    """Every file below `folder` by its relative path, with size in bytes and sha256."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)} for path in files
    }


def link(source: Path, target: Path) -> None:
    """Let the files of folder `source` stand in `target` too, without a second copy where the disk can do that.

    Both sides must hold them as they are: a file is changed by putting another in its place.
    """

    def one(here: str, there: str) -> None:
        try:
            os.link(here, there)
        except OSError:  # another disk, or one that knows no links
            shutil.copyfile(here, there)

    shutil.copytree(source, target, copy_function=one, dirs_exist_ok=True)


def write_checksums(folder: Path) -> None:
    """Note the SHA-256 of every file of a folder in it, in the form that `sha256sum --check` reads."""
    sums = "".join(f"{facts['sha256']}  {path}\n" for path, facts in listing(folder).items())
    with finished(folder / CHECKSUMS) as file:
        file.write(sums)


def checksums(path: Path) -> dict[str, str]:
    """What `write_checksums` noted: each file's hash. Raises KodaError for a line of another form."""
    found = {}
    text = path.read_text(encoding="utf-8", errors="surrogateescape")  # as file names that are not UTF-8 are held
    for number, line in enumerate(text.splitlines(), 1):
        digest, gap, name = line.partition("  ")
        if len(digest) != 64 or not gap or not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise KodaError(f"{path}, line {number}: not a SHA-256, two spaces and a file of this folder.")
        found[name] = digest
    return found


def replace_folder(new: Path, old: Path) -> None:
    """Put folder `new` in the place of `old`; a moment without either is the most that a crash can leave."""
    aside = old.with_name(f".{old.name}.replaced")
    shutil.rmtree(aside, ignore_errors=True)
    if old.exists():
        old.rename(aside)
    new.rename(old)
    shutil.rmtree(aside, ignore_errors=True)


def hold(path: Path, what: str, seconds: float = 1.0, known_as: str = "") -> IO[str]:
    """Lock a file for as long as it stays open, and note in it who did; one that another process holds is waited for.

    `known_as`: what else the process goes by, beside its number. Raises KodaError after so many `seconds`, saying who
    holds it and since when.
    """
    file = path.open("a+", encoding="utf-8")
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.05)
                continue
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise KodaError(f"{what} is being worked on by {holder}. Wait for it, or give this run another --name.")
    file.truncate(0)
    also = f" ({known_as})" if known_as else ""
    file.write(f"process {os.getpid()} since {time.strftime('%H:%M')}{also}\n")
    file.flush()
    return file


def held(path: Path) -> bool:
    """Does another process hold this lock?"""
    try:
        with path.open() as file:  # for reading: NFS gives no shared lock on a file that is open for writing alone
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def disk_full(error: Exception) -> bool:
    """Did a write fail for want of room, here or in a process whose last words these are?"""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    words = str(error)
    return "No space left on device" in words or ("requested and" in words and "written" in words)  # numpy's tofile
