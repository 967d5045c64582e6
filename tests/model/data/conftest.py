from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.data.prepare import Spread, on_this_machine, prepare
from model.data.recipe import Recipe
from model.figures import CorpusFigures

Prepare = Callable[..., CorpusFigures]
PLAIN = {
    "tokenizer": "train",
    "template": "own",
    "vocab_size": 300,
    "text_column": "text",
    "encoding": "",
    "split": "train",
    "cut": "auto",
    "limit": 0,
    "shortest": 0,
    "longest": 0,
    "quality": False,
    "deduplicate": True,
    "bad_input": "refuse",
    "contamination": "",
    "drop_contaminated": False,
    "heldout_fraction": 0.2,
    "shard_tokens": 1000,
}


@pytest.fixture
def recipe() -> Callable[..., Recipe]:
    """A recipe for a source (or several with weights), with these settings changed."""

    def make(source: Path | dict[str, float], **changes: Any) -> Recipe:
        weights = source if isinstance(source, dict) else {str(source): 1.0}
        return Recipe(**{**PLAIN, "source": weights, **changes})

    return make


@pytest.fixture
def prepared(recipe: Callable[..., Recipe]) -> Prepare:
    """Source and folder → figures, with these settings changed; one worker process unless a spread is passed."""

    def run(source: Path | dict[str, float], out: Path, spread: Spread | None = None, **changes: Any) -> CorpusFigures:
        return prepare(out, recipe(source, **changes), spread or on_this_machine(1), lambda *_: None)

    return run
