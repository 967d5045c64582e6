"""A model as numbers, apart from any network that computes with them."""

from typing import Any, NamedTuple

from model.config import LlamaConfig


class Stored(NamedTuple):
    """A model's shape, and nested dicts of numpy arrays in the types that they are stored in.

    What reads and writes other programs' files works on this, so that a model is in memory once.
    """

    config: LlamaConfig
    params: dict[str, Any]
