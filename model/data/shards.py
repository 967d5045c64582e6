"""Token shards: flat arrays of token ids in `.npy` files, and a manifest that vouches for them.

A folder holds `00000.npy`, `00001.npy`, … (uint16 or uint32, whichever holds the vocabulary), for conversations also
`00000.marks.npy` (uint8, one for each token: bit 0, the token is trained on; bit 1, a conversation starts here), and
`manifest.json`. Reading is memory-mapped: what is resident does not grow with the corpus.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.errors import KodaError
from model.files import finished, read_json, sha256, write_json

TRAINED, STARTS = 1, 2
MANIFEST = "manifest.json"


class ShardWriter:
    """Cuts a stream of tokens into shards of `shard_tokens`; a shard has its name only once it is whole."""

    def __init__(self, folder: Path, vocab_size: int, shard_tokens: int, marked: bool = False):
        self.folder, self.shard_tokens = folder, shard_tokens
        self.dtype = np.uint16 if vocab_size <= 1 << 16 else np.uint32
        self.vocab_size = vocab_size
        self.marked = marked
        self.shards: list[dict[str, Any]] = []
        self._tokens: list[np.ndarray] = []
        self._marks: list[np.ndarray] = []
        self._held = 0
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, tokens: Sequence[int], marks: Sequence[int] | None = None) -> None:
        self._tokens.append(np.asarray(tokens, self.dtype))
        if self.marked:
            self._marks.append(np.asarray(marks, np.uint8))
        self._held += len(tokens)
        while self._held >= self.shard_tokens:
            self._write(self.shard_tokens)

    def close(self, **facts: Any) -> dict[str, Any]:
        """Write what is left and the manifest; `facts` go into it."""
        if self._held:
            self._write(self._held)
        manifest = {
            "tokens": sum(shard["tokens"] for shard in self.shards),
            "vocab_size": self.vocab_size,
            "dtype": np.dtype(self.dtype).name,
            "marked": self.marked,
            **facts,
            "shards": self.shards,
        }
        write_json(self.folder / MANIFEST, manifest)
        return manifest

    def _write(self, count: int) -> None:
        name = f"{len(self.shards):05d}"
        tokens, self._tokens = _take(self._tokens, count)
        _save(self.folder / f"{name}.npy", tokens)
        if self.marked:
            marks, self._marks = _take(self._marks, count)
            _save(self.folder / f"{name}.marks.npy", marks)
        hashes = {f"{part.name}": sha256(part) for part in sorted(self.folder.glob(f"{name}.*npy"))}
        self.shards.append({"file": f"{name}.npy", "tokens": count, "sha256": hashes})
        self._held -= count


def _take(pieces: list[np.ndarray], count: int) -> tuple[np.ndarray, list[np.ndarray]]:
    joined = np.concatenate(pieces)
    return joined[:count], [joined[count:]]


def _save(path: Path, array: np.ndarray) -> None:
    with finished(path, "wb") as file:
        np.save(file, array, allow_pickle=False)


class Shards:
    """A folder of shards as one long memory-mapped array of tokens, and of marks where they have them."""

    def __init__(self, folder: Path):
        path = folder / MANIFEST
        if not path.is_file():
            raise KodaError(f"{folder} holds no token shards: there is no {MANIFEST} in it.")
        self.manifest: dict[str, Any] = read_json(path)
        self.tokens = [_open(folder / shard["file"], shard["tokens"]) for shard in self.manifest["shards"]]
        self.marks = (
            [
                _open((folder / shard["file"]).with_suffix(".marks.npy"), shard["tokens"])
                for shard in self.manifest["shards"]
            ]
            if self.manifest["marked"]
            else None
        )
        self.starts = np.cumsum([0] + [len(shard) for shard in self.tokens])

    def __len__(self) -> int:
        """How many tokens there are."""
        return int(self.starts[-1])

    def read(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Tokens `start … start + count` as int32, and their marks."""
        return self._slice(self.tokens, start, count).astype(np.int32), (
            None if self.marks is None else self._slice(self.marks, start, count)
        )

    def _slice(self, shards: list[np.ndarray], start: int, count: int) -> np.ndarray:
        first = int(np.searchsorted(self.starts, start, side="right")) - 1
        pieces = []
        while count > 0:
            offset = start - int(self.starts[first])
            pieces.append(shards[first][offset : offset + count])
            start, count, first = start + len(pieces[-1]), count - len(pieces[-1]), first + 1
        return np.concatenate(pieces)

    def fingerprint(self) -> str:
        """What was tokenized and how: the hash of the manifest, which holds the hash of every shard."""
        return hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()


def _open(path: Path, tokens: int) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise KodaError(f"{path} cannot be read ({error}). Run the tokenize stage again.") from None
    if array.shape != (tokens,):
        raise KodaError(f"{path} holds {array.shape[0]} tokens, the manifest says {tokens}. Run tokenize again.")
    return array
