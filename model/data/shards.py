"""Token shards: flat arrays of token ids in `.npy` files, and a manifest with their sizes and hashes.

A folder contains `00000.npy`, `00001.npy`, … (uint16 or uint32, the smaller one that fits the vocabulary); beside each,
for documents, `00000.starts.npy` (uint32: where in the shard each document begins), and for conversations
`00000.marks.npy` (uint8, one for each token: bit 0, the token is trained on; bit 1, a conversation starts here); and
`manifest.json`. Shards are memory-mapped, so that resident memory does not grow with the corpus.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.errors import KodaError
from model.files import atomic_write, read_json, read_lines, sha256, write_json

TRAINED, STARTS = 1, 2
MANIFEST = "manifest.json"
JOURNAL = "shards.jsonl"  # the complete shards, until the manifest lists them


def token_type(vocab_size: int) -> type[np.unsignedinteger]:
    """The smaller of the two number types that fits every id."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


class ShardWriter:
    """Cuts a stream of tokens into shards of `shard_tokens`; a shard gets its name only when it is complete.

    `resumes`: keep the shards that an earlier attempt completed. The caller then repeats the stream from its beginning,
    and tokens in complete shards are ignored; of those only the number is needed (`written`, `skip`). `close` leaves
    the journal for the caller to remove, once no further attempt can follow.
    """

    def __init__(
        self, folder: Path, vocab_size: int, shard_tokens: int, *, marked: bool = False, resumes: bool = False
    ):
        self.folder, self.shard_tokens = folder, shard_tokens
        self.dtype = token_type(vocab_size)
        self.vocab_size = vocab_size
        self.marked, self.resumes = marked, resumes
        folder.mkdir(parents=True, exist_ok=True)
        if not resumes:
            (folder / JOURNAL).unlink(missing_ok=True)
        self.shards: list[dict[str, Any]] = read_lines(folder / JOURNAL)
        if self.shards:
            with atomic_write(folder / JOURNAL) as journal:  # without the line that a full disk may have cut short
                journal.writelines(json.dumps(shard) + "\n" for shard in self.shards)
        self.position = 0  # tokens of the stream so far
        self._pieces: dict[str, list[np.ndarray]] = {"tokens": [], "marks": []}
        self._starts: list[np.ndarray] = []  # where documents begin in the stream

    @property
    def written(self) -> int:
        """Tokens of the stream that are in complete shards."""
        return sum(shard["tokens"] for shard in self.shards)

    def skip(self, count: int) -> None:
        """Advance by `count` tokens that are in complete shards."""
        assert self.position + count <= self.written
        self.position += count

    def add(self, tokens: Sequence[int], marks: Sequence[int] | None = None) -> None:
        """One document, or one row of conversations with its marks."""
        self.extend(np.asarray(tokens, self.dtype), np.array([len(tokens)]), marks)

    def extend(self, tokens: np.ndarray, lengths: np.ndarray, marks: Sequence[int] | None = None) -> None:
        """Documents of these lengths in tokens, one after the other."""
        written = max(0, self.written - self.position)  # of these tokens, those in complete shards
        self._pieces["tokens"].append(tokens[written:].astype(self.dtype, copy=False))
        if self.marked:
            self._pieces["marks"].append(np.asarray(marks, np.uint8)[written:])
        self._starts.append(self.position + np.cumsum(lengths) - lengths)
        self.position += len(tokens)
        while self.position - self.written >= self.shard_tokens:
            self._write(self.shard_tokens)

    def close(self, **facts: Any) -> dict[str, Any]:
        """Write the last shard and the manifest with these `facts`; returns the manifest."""
        if rest := self.position - self.written:
            self._write(rest)
        manifest = {
            "tokens": self.written,
            "vocab_size": self.vocab_size,
            "dtype": np.dtype(self.dtype).name,
            "marked": self.marked,
            **facts,
            "shards": self.shards,
        }
        write_json(self.folder / MANIFEST, manifest)
        if not self.resumes:
            (self.folder / JOURNAL).unlink(missing_ok=True)
        return manifest

    def _write(self, count: int) -> None:
        name, first = f"{len(self.shards):05d}", self.written
        arrays = {f"{name}.npy": self._take("tokens", count)}
        if self.marked:
            arrays[f"{name}.marks.npy"] = self._take("marks", count)
        else:
            starts = np.concatenate(self._starts)
            arrays[f"{name}.starts.npy"] = (starts[(starts >= first) & (starts < first + count)] - first).astype("u4")
            self._starts = [starts[starts >= first + count]]
        for file, array in arrays.items():
            with atomic_write(self.folder / file, "wb") as opened:
                np.save(opened, array, allow_pickle=False)
        hashes = {file: sha256(self.folder / file) for file in sorted(arrays)}
        sizes = {file: (self.folder / file).stat().st_size for file in sorted(arrays)}
        shard = {"file": f"{name}.npy", "tokens": count, "size": sizes, "sha256": hashes}
        # On a full disk this must fail (append_line would not): blocks are removed once their shard is in the journal.
        with (self.folder / JOURNAL).open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(shard) + "\n")
            journal.flush()
            os.fsync(journal.fileno())
        self.shards.append(shard)

    def _take(self, name: str, count: int) -> np.ndarray:
        joined = np.concatenate(self._pieces[name])
        self._pieces[name] = [joined[count:]]
        return joined[:count]


class Shards:
    """A folder of shards as one long memory-mapped array of tokens, and of marks where they have them."""

    def __init__(self, folder: Path):
        path = folder / MANIFEST
        if not path.is_file():
            raise KodaError(f"{folder} has no token shards: there is no {MANIFEST} in it.")
        self.folder = folder
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
        """The number of tokens."""
        return int(self.starts[-1])

    def read(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Tokens `start … start + count` as int32, and their marks."""
        return self._slice(self.tokens, start, count).astype(np.int32), (
            None if self.marks is None else self._slice(self.marks, start, count)
        )

    def documents(self) -> list[np.ndarray]:
        """Where documents begin in each shard, and the shard's length; its last document may continue in the next."""
        starts_by_shard = []
        for shard, tokens in zip(self.manifest["shards"], self.tokens, strict=True):
            starts = np.load((self.folder / shard["file"]).with_suffix(".starts.npy"), allow_pickle=False)
            starts_by_shard.append(np.append(starts, len(tokens)).astype(np.int64))
        return starts_by_shard

    def _slice(self, shards: list[np.ndarray], start: int, count: int) -> np.ndarray:
        first = int(np.searchsorted(self.starts, start, side="right")) - 1
        pieces = []
        while count > 0:
            offset = start - int(self.starts[first])
            pieces.append(shards[first][offset : offset + count])
            start, count, first = start + len(pieces[-1]), count - len(pieces[-1]), first + 1
        return np.concatenate(pieces)

    def fingerprint(self) -> str:
        """What was tokenized and how: the hash of the manifest, which contains the hash of every shard."""
        return hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()


def _open(path: Path, tokens: int) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise KodaError(f"{path} cannot be read ({error}). Run the tokenize stage again.") from None
    if array.shape != (tokens,):
        raise KodaError(f"{path} has {array.shape[0]} tokens, the manifest {tokens}. Run the tokenize stage again.")
    return array
