"""Named arrays on disk: Orbax for the bytes, and a commit file that says they are whole.

A folder counts once `COMMIT.json` is in it. It is renamed into place after the last byte is written, and holds what the
arrays should be: shape, type and checksum of each, beside the facts that the writer adds.
"""

import shutil
import threading
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from model.files import read_json, write_json

COMMIT = "COMMIT.json"
ARRAYS = "arrays"


class Broken(Exception):
    """A folder of arrays that is not what its commit file says; the message names what is wrong."""


def flatten(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by their path, `layers/attention/query/kernel`: names that outlive any container type."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def unflatten(template: Any, arrays: dict[str, Any]) -> Any:
    """A pytree like `template`, with the leaves of these names."""
    return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(template), [arrays[k] for k in flatten(template)])


def checksum(array: np.ndarray) -> int:
    """CRC-32 of the array's bytes: it catches flipped and missing bytes; it is no protection against malice."""
    return zlib.crc32(np.ascontiguousarray(array).data.cast("B") if array.size else b"")


def write(folder: Path, tree: Any, **facts: Any) -> None:
    """Write the arrays of `tree` and then the commit file; what stood at `folder` is replaced."""
    shutil.rmtree(folder, ignore_errors=True)
    arrays = {name: np.asarray(leaf) for name, leaf in flatten(tree).items()}
    bad = [name for name, a in arrays.items() if a.dtype.kind not in "iub" and not np.isfinite(a).all()]
    if bad:
        raise Broken(f"{bad[0]} holds numbers that are not finite; such a state is never saved")
    with ocp.StandardCheckpointer() as orbax:
        orbax.save(folder.absolute() / ARRAYS, arrays)
    described = {
        name: {"shape": list(a.shape), "dtype": a.dtype.name, "crc32": checksum(a)} for name, a in arrays.items()
    }
    write_json(folder / COMMIT, {**facts, "arrays": described})


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
    expected = facts(folder)["arrays"]
    like = {name: jax.ShapeDtypeStruct(tuple(a["shape"]), a["dtype"]) for name, a in expected.items()}
    numpy_args = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in like}
    try:
        with ocp.PyTreeCheckpointer() as orbax:
            arrays = orbax.restore(
                folder.absolute() / ARRAYS, args=ocp.args.PyTreeRestore(item=like, restore_args=numpy_args)
            )
    except MemoryError:
        raise  # the folder is not to blame
    except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged folder
        raise Broken(f"{folder} cannot be read: {type(error).__name__}: {str(error).splitlines()[0]}") from error
    for name, description in expected.items():
        array = arrays[name]
        if list(array.shape) != description["shape"] or array.dtype.name != description["dtype"]:
            raise Broken(f"{folder}: {name} is {array.dtype} {array.shape}, the commit file says {description}")
        if checksum(array) != description["crc32"]:
            raise Broken(f"{folder}: the checksum of {name} is not the one it was saved with")
    return arrays


class Background(threading.Thread):
    """A write that goes on while the caller does something else; `join` raises what it raised."""

    def __init__(self, folder: Path, tree: Any, **facts: Any):
        super().__init__(name=f"write {folder}")
        # A copy: on a CPU the arrays' memory is the very memory that the next step, with donated buffers, writes over.
        self._tree = jax.tree.map(lambda leaf: np.array(leaf), tree)
        self._folder, self._facts = folder, facts
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            write(self._folder, self._tree, **self._facts)
        except BaseException as error:
            self.error = error

    def join(self, timeout: float | None = None) -> None:
        super().join(timeout)
        if self.error is not None:
            raise self.error
