"""A longer context for the same weights."""

from pathlib import Path

import jax
import pytest

from model import weights
from model.files import COMMIT
from model.stretch import stretch


def test_stretched_model_has_the_same_numbers_and_a_longer_context(saved_model: Path, tmp_path: Path) -> None:
    source = saved_model / "weights"
    before = weights.read(source)
    figures = stretch(source, tmp_path / "longer", 2.0, "ntk")
    after = weights.read(tmp_path / "longer")  # which checks every array
    assert after.config.max_position_embeddings == figures.context == 2 * before.config.max_position_embeddings
    assert after.config.rope_theta == figures.rope_theta > figures.old_rope_theta == before.config.rope_theta
    jax.tree.map(lambda a, b: (a == b).all() or pytest.fail("a number differs"), after.params, before.params)
    again = (source / COMMIT).read_bytes()
    stretch(source, tmp_path / "longer", 2.0, "ntk")  # as a stage does that was interrupted
    assert (source / COMMIT).read_bytes() == again and weights.config(source) == before.config
