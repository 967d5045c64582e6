from dataclasses import replace
from pathlib import Path

import pytest

from model.config import Compute
from model.data import tokenizer as tokenizers
from model.data.shards import ShardWriter
from model.training.job import Job
from tests.conftest import SHAPE
from tests.model.training.test_optimizer import RECIPE


@pytest.fixture(scope="package")
def job(tmp_path_factory: pytest.TempPathFactory, prose: str, tokenizer_file: Path) -> Job:
    """A training of 60 small steps on real text."""
    root = tmp_path_factory.mktemp("training")
    vocabulary = tokenizers.load(str(tokenizer_file))
    for part, text in (("train", prose[:150_000]), ("heldout", prose[150_000:160_000])):
        writer = ShardWriter(root / part, vocabulary.size, 20_000)
        writer.add(vocabulary.plain(text))
        writer.close()
    shape = replace(SHAPE, vocab_size=512, tie_word_embeddings=True)
    recipe = replace(
        RECIPE, steps=60, batch_size=8, optimizer="muon", weight_decay=0.1, save_every_steps=20, snapshots=8
    )
    return Job(
        folder=str(root / "uninterrupted"),
        train=str(root / "train"),
        heldout=str(root / "heldout"),
        sequence_length=64,
        end_of_text=0,
        model=shape,
        compute=Compute(),
        recipe=recipe,
        cache=str(root / "cache"),
    )
