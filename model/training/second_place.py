"""A second place for the checkpoints of a training: a folder on another disk, or a bucket.

A checkpoint there is complete once it has its commit file, as here; its arrays are checked when it is read. Credentials
come from the environment alone, as the library of each kind of place reads them.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec

from model.files import COMMIT

KEPT = 2  # checkpoints at the place: the newest, and one to fall back to
OPTIONS: dict[str, dict[str, Any]] = {
    "file": {"auto_mkdir": True},
    # An unreachable place is noticed in seconds, and tried again later.
    "s3": {"config_kwargs": {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 2}}},
}


class SecondPlace:
    """The checkpoints at an address, `s3://bucket/path` or a folder. Whatever goes wrong there raises an exception of
    its library's."""

    def __init__(self, address: str):
        protocol = fsspec.utils.get_protocol(address)
        options = OPTIONS.get(protocol, {})
        self.files, self.root = fsspec.core.url_to_fs(address, use_listings_cache=False, **options)

    def steps(self) -> list[int]:
        """The committed steps, oldest first."""
        found = (Path(path).parent.name for path in self.files.glob(f"{self.root}/*/{COMMIT}"))
        return sorted(int(name) for name in found if name.isdigit())

    def put(self, checkpoint: Path) -> None:
        """Copy a committed checkpoint, its commit file last, over what there is of it.

        Raises OSError where a file is not there in its full length afterwards.
        """
        there = f"{self.root}/{checkpoint.name}"
        files = [path for path in checkpoint.rglob("*") if path.is_file() and path.name != COMMIT]
        for path in [*sorted(files), checkpoint / COMMIT]:
            target = f"{there}/{path.relative_to(checkpoint).as_posix()}"
            self.files.put_file(str(path), target)
            if (length := self.files.info(target)["size"]) != path.stat().st_size:
                raise OSError(f"{target} has {length} bytes, of {path.stat().st_size}")

    def prune(self, newest: int) -> None:
        """Remove all but the KEPT newest up to step `newest`. Of later ones the training has gone back behind."""
        steps = self.steps()
        kept = [step for step in steps if step <= newest][-KEPT:]
        for step in steps:
            if step not in kept:
                self._remove(str(step))

    def get(self, step: int, checkpoints: Path, beat: Callable[[], None] = lambda: None) -> None:
        """Copy the checkpoint of this step into a folder of checkpoints; it has its name once it is complete. `beat` is
        called before each file."""
        incoming = checkpoints / f".{step}.incoming"
        shutil.rmtree(incoming, ignore_errors=True)
        source = f"{self.root}/{step}"
        try:
            for path in self.files.find(source):
                beat()
                target = incoming / path[len(source) + 1 :]
                target.parent.mkdir(parents=True, exist_ok=True)
                self.files.get_file(path, str(target))
        except BaseException:
            shutil.rmtree(incoming, ignore_errors=True)  # the next save needs the room
            raise
        shutil.rmtree(checkpoints / str(step), ignore_errors=True)
        incoming.rename(checkpoints / str(step))

    def clear(self) -> None:
        """Remove everything there."""
        for step in self.steps():
            self._remove(str(step))
        if self.files.exists(self.root):
            self.files.rm(self.root, recursive=True)

    def _remove(self, name: str) -> None:
        commit = f"{self.root}/{name}/{COMMIT}"
        if self.files.exists(commit):
            self.files.rm_file(commit)  # first, so that half of it never counts
        self.files.rm(f"{self.root}/{name}", recursive=True)


def unsupported(address: str) -> str:
    """What is wrong with an address, in a few words; empty where nothing is, as far as can be told from here."""
    protocol = fsspec.utils.get_protocol(address)
    if "@" in address.partition("://")[2].partition("/")[0]:
        return "it has credentials in it; they belong in the environment"
    try:
        fsspec.get_filesystem_class(protocol)
    except ValueError:
        return f"nothing knows {protocol}://; it takes a folder, s3://BUCKET/PATH or gs://BUCKET/PATH"
    except ImportError:
        package = {"s3": "'koda[s3]'", "gs": "gcsfs"}.get(protocol, f"the package of fsspec for {protocol}")
        return f"{protocol}:// needs pip install {package}"
    return ""
