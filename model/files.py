"""Files that are either complete or not there."""

import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from model.errors import KodaError

CHECKSUMS = "CHECKSUMS"
COMMIT = "COMMIT.json"  # marks a folder of arrays as complete
ARRAYS = "arrays"  # where it has them
# What `read_field` requires of a value.
KINDS = {
    bool: "true or false",
    int: "a positive whole number",
    float: "a positive number",
    str: "text",
    list: "a list",
    dict: "an object",
}


@contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that gets its name only when the block ends without an error.

    It is written to a temporary file in the same folder, flushed to disk and renamed. If the block fails, the previous
    file is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove the temporary files that a killed `atomic_write` left below `folder`, where no other process may write."""
    for path in folder.rglob(".*"):
        if path.suffix[1:].isdecimal() and path.is_file():
            path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value`, JSON or dataclasses, as JSON that a person can read; whole or not at all."""
    with atomic_write(path) as file:
        json.dump(value, file, indent=1, ensure_ascii=False, default=asdict)
        file.write("\n")


def read_json(path: Path) -> Any:
    """Raises KodaError for a file that is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise KodaError(f"{path} is not JSON: {error}") from None


def read_object(path: Path) -> dict[str, Any]:
    """Raises KodaError for a file that is not a JSON object."""
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise KodaError(f"{path} is not a JSON object.")
    return raw


def read_field(raw: dict[str, Any], name: str, kind: type, where: object, default: Any = ...) -> Any:
    """A field of what was read from the file `where`; `default` where it has none.

    Raises KodaError, by the field's name, for a value that is not what KINDS has for this kind, and for a missing one
    without a default.
    """
    value = raw.get(name, default)
    if value is ...:
        raise KodaError(f"{where} has no {name}.")
    fits = type(value) is kind or (kind is float and type(value) is int)
    if value is not default and not (fits and (kind not in (int, float) or 0 < value < math.inf)):
        raise KodaError(f"{where}: {name} = {value!r:.80} is not {KINDS[kind]}.")
    return value


def read_text(path: Path) -> str:
    """Raises KodaError for a file that is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise KodaError(f"{path} is not UTF-8: {error}") from None


@contextmanager
def in_file(path: object) -> Iterator[None]:
    """A KodaError of the block begins with the file's path, and is one line."""
    try:
        yield
    except KodaError as error:
        raise KodaError(f"{path}: {error}".replace("\n", " ")) from None


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Append one JSON line in a single write, so that the lines of two writers never mix.

    On a full disk the line is lost: a log must not stop the work.
    """
    try:
        with path.open("ab", buffering=0) as file:
            file.write((json.dumps(line) + "\n").encode())
    except OSError as error:
        if not disk_full(error):
            raise


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in the lines of a file, none where there is no file; a line that a crash cut short is left out."""
    lines = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue
    return [line for line in lines if isinstance(line, dict)]


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def listing(folder: Path, without: str = "") -> dict[str, dict[str, Any]]:
    """Every file below `folder` by its relative path, with size in bytes and sha256. Those in its folder `without` are
    left out, and not read."""
    left_out = folder / without if without else None
    files = sorted(path for path in folder.rglob("*") if path.is_file() and left_out not in path.parents)
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)} for path in files
    }


def link(source: Path, target: Path) -> None:
    """Add the files of folder `source` to `target`, as `link_file` does."""
    shutil.copytree(source, target, copy_function=link_file, dirs_exist_ok=True)


def link_file(source: Path | str, target: Path | str) -> None:
    """Make `target` the same file as `source`: a hard link where the file system has them, else a copy.

    A linked file must never be changed in place: replace it by a new one.
    """
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        if not (Path(target).exists() and Path(target).samefile(source)):
            shutil.copyfile(source, target)


def write_checksums(folder: Path) -> None:
    """Write CHECKSUMS, the SHA-256 of every file of a folder, into it, in the form that `sha256sum --check` reads."""
    sums = "".join(f"{facts['sha256']}  {path}\n" for path, facts in listing(folder).items())
    with atomic_write(folder / CHECKSUMS) as file:
        file.write(sums)


def checksums(path: Path) -> dict[str, str]:
    """Each file's hash by its path, from a file of `write_checksums`. Raises KodaError for a line of another form."""
    hashes = {}
    text = path.read_text(encoding="utf-8", errors="surrogateescape")  # Python's form of file names that are not UTF-8
    for number, line in enumerate(text.splitlines(), 1):
        digest, gap, name = line.partition("  ")
        if len(digest) != 64 or not gap or not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise KodaError(f"{path}, line {number}: not a SHA-256, two spaces and a file of this folder.")
        hashes[name] = digest
    return hashes


def committed_steps(folder: Path) -> list[int]:
    """The steps of a training that are complete below `folder`, a folder of its number for each, in their order."""
    commits = folder.glob(f"*/{COMMIT}")
    return sorted(int(commit.parent.name) for commit in commits if commit.parent.name.isdigit())


def replace_folder(new: Path, old: Path) -> None:
    """Move folder `new` to the place of `old`. A crash in between leaves `new` complete, and nothing at `old`."""
    aside = old.with_name(f".{old.name}.replaced")
    shutil.rmtree(aside, ignore_errors=True)
    if old.exists():
        old.rename(aside)
    new.rename(old)
    shutil.rmtree(aside, ignore_errors=True)


def lock_file(path: Path, what: str, seconds: float = 1.0, known_as: str = "") -> IO[str]:
    """Lock a file until it is closed, and write the owner into it: this process, its machine, the time and `known_as`.

    `what` names the locked thing in the error. Raises KodaError, with the other owner and its time, where another
    process keeps the lock for longer than `seconds`.
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
        file.close()
        raise _locked(path, what)
    file.truncate(0)
    also = f" ({known_as})" if known_as else ""
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%H:%M')}{also}\n")
    file.flush()
    return file


def owner_is_gone(path: Path) -> bool:
    """Was the file last locked by a process of this machine that exists no more?

    The kernel unlocks it when its process dies. False also while another process has it locked, and where the owner is
    of another machine, of which nothing is known here.
    """
    owner = re.match(r"process (\d+) on (\S+) ", path.read_text(encoding="utf-8"))
    if owner is None or owner[2] != socket.gethostname():
        return False
    return not is_locked(path) and not Path(f"/proc/{owner[1]}").exists()


def check_unlocked(path: Path, what: str) -> None:
    """Raise the KodaError that `lock_file` does where another process has locked this file now."""
    if is_locked(path):
        raise _locked(path, what)


def _locked(path: Path, what: str) -> KodaError:
    owner = path.read_text(encoding="utf-8").strip() or "another process"
    return KodaError(f"{what} is locked by {owner}. Wait for it, or give this run another --name.")


def is_locked(path: Path) -> bool:
    """Whether another process has locked this file."""
    try:
        with path.open() as file:  # NFS refuses a shared lock on a file that is open for writing only
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def disk_full(error: Exception) -> bool:
    """Whether a write failed because the disk is full, here or in a process that ended with this error message."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    message = str(error)
    if "No space left on device" in message:
        return True
    return "requested and" in message and "written" in message  # numpy's tofile
