"""Named arrays on disk: Orbax for the bytes, and a commit file that says they are whole.

A folder counts once `COMMIT.json` is in it. It is renamed into place after the last byte is written, and holds what the
arrays should be: shape, type and checksum of each, beside the facts that the writer adds.
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

from model.files import disk_full, read_json, write_json

COMMIT = "COMMIT.json"
ARRAYS = "arrays"
TOGETHER = 128_000_000  # bytes handed to Orbax at once: it holds nearly twice as much while it writes them


class Broken(Exception):
    """A folder of arrays that is not what its commit file says; the message names what is wrong."""


def flatten(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by their path, `layers/attention/query/kernel`: names that outlive any container type."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def unflatten(template: Any, arrays: dict[str, Any]) -> Any:
    """A pytree like `template`, with the leaves of these names."""
    return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(template), [arrays[k] for k in flatten(template)])


def size(tree: Any) -> int:
    """Bytes of all leaves."""
    return sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def checksum(array: np.ndarray) -> int:
    """CRC-32 of the array's bytes: it catches flipped and missing bytes; it is no protection against malice."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def write(folder: Path, tree: Any, *, verify: bool = False, **facts: Any) -> None:
    """Write the arrays of `tree` and then the commit file; what stood at `folder` is replaced.

    With `verify` they are read back before the commit. Raises Broken for numbers that are not finite, or where what is
    read is not what was written.
    """
    _write(folder, flatten(tree), verify, facts)


def _write(folder: Path, named: dict[str, Any], verify: bool, facts: dict[str, Any]) -> None:
    """Empties `named` as it goes, so that memory falls while the disk fills."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, leaf in named.items():
        array = np.asarray(leaf)
        if array.dtype.kind not in "iub" and not np.isfinite(array).all():
            raise Broken(f"{name} holds numbers that are not finite; such a state is never saved")
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
    """Orbax for one process: as one of several, it would wait for the others at every step."""
    number = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=number, active_processes={number}, barrier_sync_key_prefix=f"process{number}"
    )
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone)


def _parts(named: dict[str, Any]) -> Iterator[list[str]]:
    names: list[str] = []
    held = 0
    for name, leaf in named.items():
        if names and held + leaf.nbytes > TOGETHER:
            yield names
            names, held = [], 0
        names.append(name)
        held += leaf.nbytes
    yield names


def committed(folder: Path) -> bool:
    return (folder / COMMIT).is_file()


def facts(folder: Path) -> dict[str, Any]:
    """The commit file. Raises Broken where there is none."""
    try:
        return read_json(folder / COMMIT)
    except (OSError, ValueError):
        raise Broken(f"{folder} has no readable {COMMIT}: its save never ended") from None


def read(folder: Path) -> dict[str, np.ndarray]:
    """All arrays of a folder by name. Raises Broken, naming the first that is not what the commit file says."""
    return dict(read_parts(folder, facts(folder)["arrays"]))


def read_parts(folder: Path, described: dict[str, dict[str, Any]]) -> Iterator[tuple[str, np.ndarray]]:
    """Every array with its name, once it is known to be the one described."""
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
            raise  # the folder is not to blame
        except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged folder
            raise Broken(f"{folder} cannot be read: {type(error).__name__}: {str(error).splitlines()[0]}") from error
        for name, description in expected.items():
            array = arrays.pop(name)
            if list(array.shape) != description["shape"] or array.dtype.name != description["dtype"]:
                raise Broken(f"{folder}: {name} is {array.dtype} {array.shape}, the commit file says {description}")
            if checksum(array) != description["crc32"]:
                raise Broken(f"{folder}: the checksum of {name} is not the one it was saved with")
            yield name, array


class Background(threading.Thread):
    """A write that goes on while the caller does something else; `join` raises what it raised."""

    def __init__(self, folder: Path, named: dict[str, np.ndarray], *, verify: bool = False, **facts: Any):
        """`named` belongs to the write from now on."""
        super().__init__(name=f"write {folder}")
        self._named, self._folder, self._verify, self._facts = named, folder, verify, facts
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            _write(self._folder, self._named, self._verify, self._facts)
        except Exception as error:
            self.error = error
            if disk_full(error):  # half a checkpoint would keep the room that the next one needs
                shutil.rmtree(self._folder, ignore_errors=True)

    def join(self, timeout: float | None = None) -> None:
        super().join(timeout)
        if self.error is not None:
            raise self.error
