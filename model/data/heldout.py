"""Which documents are held out: each document's own hash decides, so that it stays in its part as the corpus grows."""

import hashlib

import numpy as np


def hash_of(text: str) -> int:
    """64 bits that identify a document: two with the same hash are treated as copies."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8])


def heldout(hashes: np.ndarray, fraction: float) -> np.ndarray:
    """`[n]` bool: which of the documents with these hashes are held out."""
    return hashes < np.uint64(fraction * 2**64)


def is_heldout(text: str, fraction: float) -> bool:
    """Does this text belong to the held-out part? Only its own bytes decide."""
    return bool(heldout(np.array([hash_of(text)], np.uint64), fraction)[0])
