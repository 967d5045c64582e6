"""Named arrays on disk: Orbax for the bytes, and a commit file that marks them as complete.

A folder is valid once `COMMIT.json` is in it. The file is renamed into place after the last byte is written. It records
the shape, type and checksum of each array, and the facts that the writer adds.
"""

import shutil
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from model.errors import KodaError
from model.files import ARRAYS, COMMIT, disk_full, read_field, read_object, write_json

PART_BYTES = 128_000_000  # of the arrays that Orbax writes at once: it needs nearly twice as much memory for them


class Corrupt(Exception):
    """A folder of arrays that does not match its commit file; the message names the difference."""


def flatten(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by their path, `layers/attention/query/kernel`: the same in every container type."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def unflatten(template: Any, arrays: dict[str, Any]) -> Any:
    """A pytree like `template`, with these arrays as its leaves."""
    return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(template), [arrays[k] for k in flatten(template)])


def size(tree: Any) -> int:
    """Bytes of all leaves."""
    return sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def checksum(array: np.ndarray) -> int:
    """CRC-32 of the array's bytes: it catches flipped and missing bytes; it is no protection against malice."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def write(folder: Path, tree: Any, *, verify: bool = False, **facts: Any) -> None:
    """Write the arrays of `tree` and then the commit file; `folder` is replaced.

    With `verify` the arrays are read back before the commit. Raises Corrupt for numbers that are not finite, and for
    arrays that are not read back as they were written.
    """
    _write(folder, flatten(tree), verify, facts)


def _write(folder: Path, named: dict[str, Any], verify: bool, facts: dict[str, Any]) -> None:
    """Removes each array from `named` once it is written, so that its memory is freed early."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, leaf in named.items():
        array = np.asarray(leaf)
        if array.dtype.kind not in "iub" and not np.isfinite(array).all():
            raise Corrupt(f"{name} holds numbers that are not finite; such a state is never saved")
    described: dict[str, dict[str, Any]] = {}
    for part, names in enumerate(list(_parts(named))):
        arrays = {name: np.asarray(named.pop(name)) for name in names}
        with _orbax() as orbax:
            orbax.save((folder / ARRAYS / str(part)).absolute(), arrays)
        for name, a in arrays.items():
            described[name] = {"part": part, "shape": list(a.shape), "dtype": a.dtype.name, "crc32": checksum(a)}
    if verify:
        for _ in read_parts(folder, described):
            pass
    write_json(folder / COMMIT, {**facts, "verified": verify, "arrays": described})


def _orbax() -> ocp.Checkpointer:
    """Orbax for this process alone: as one of several, it would wait for the others at every step."""
    number = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=number, active_processes={number}, barrier_sync_key_prefix=f"process{number}"
    )
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone)


def _parts(named: dict[str, Any]) -> Iterator[list[str]]:
    names: list[str] = []
    total = 0  # bytes
    for name, leaf in named.items():
        if names and total + leaf.nbytes > PART_BYTES:
            yield names
            names, total = [], 0
        names.append(name)
        total += leaf.nbytes
    yield names


def committed(folder: Path) -> bool:
    return (folder / COMMIT).is_file()


def facts(folder: Path) -> dict[str, Any]:
    """The content of the commit file. Raises Corrupt where it cannot be read."""
    try:
        written = read_object(folder / COMMIT)
        read_field(written, "arrays", dict, folder / COMMIT)
    except (OSError, KodaError):
        raise Corrupt(f"{folder} has no readable {COMMIT}: its save did not finish, or the disk lost it") from None
    return written


def read(folder: Path) -> dict[str, np.ndarray]:
    """All arrays of a folder by name. Raises Corrupt for the first that does not match the commit file."""
    return dict(read_parts(folder, facts(folder)["arrays"]))


def read_parts(folder: Path, described: dict[str, dict[str, Any]]) -> Iterator[tuple[str, np.ndarray]]:
    """Every described array with its name, each after its checks. Raises Corrupt for one that does not match."""
    for part in sorted({a["part"] for a in described.values()}):
        expected = {name: a for name, a in described.items() if a["part"] == part}
        like = {name: jax.ShapeDtypeStruct(tuple(a["shape"]), a["dtype"]) for name, a in expected.items()}
        as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in like}
        try:
            with _orbax() as orbax:
                arrays = orbax.restore(
                    (folder / ARRAYS / str(part)).absolute(),
                    args=ocp.args.PyTreeRestore(item=like, restore_args=as_numpy),
                )
        except MemoryError:
            raise  # too little memory does not make the folder corrupt
        except Exception as error:  # Orbax and TensorStore raise many kinds for a corrupt folder
            raise Corrupt(f"{folder} cannot be read: {type(error).__name__}: {str(error).splitlines()[0]}") from error
        for name, description in expected.items():
            array = arrays.pop(name)
            if list(array.shape) != description["shape"] or array.dtype.name != description["dtype"]:
                raise Corrupt(f"{folder}: {name} is {array.dtype} {array.shape}, the commit file has {description}")
            if checksum(array) != description["crc32"]:
                raise Corrupt(f"{folder}: the checksum of {name} is not the one it was saved with")
            yield name, array


class Background(threading.Thread):
    """A write in a background thread; `join` raises the write's error."""

    def __init__(self, folder: Path, named: dict[str, Any], *, verify: bool = False, **facts: Any):
        """The write empties `named`: the caller must not use it any more."""
        super().__init__(name=f"write {folder}")
        self._named, self._folder, self._verify, self.facts = named, folder, verify, facts
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            _write(self._folder, self._named, self._verify, self.facts)
        except Exception as error:
            self.error = error
            if disk_full(error):  # the next checkpoint needs the space that half of this one takes
                shutil.rmtree(self._folder, ignore_errors=True)

    def join(self, timeout: float | None = None) -> None:
        super().join(timeout)
        if self.error is not None:
            raise self.error
