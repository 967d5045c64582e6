"""The measurement at a longer context."""

from pathlib import Path

import numpy as np
import pytest

from model.data.shards import ShardWriter
from model.evaluation.context import loss_by_position
from model.llama import Llama


@pytest.mark.parametrize(("rows", "measured"), [(2, 2), (64, 3)])
def test_loss_by_position_is_that_of_the_model_without_the_logits_of_a_row(
    tmp_path: Path, model: Llama, monkeypatch: pytest.MonkeyPatch, rows: int, measured: int
) -> None:
    """Twice the model's context of 64, on as many whole rows as there are. The logits of a row would be as large as the
    context times the vocabulary."""
    tokens = np.random.default_rng(0).integers(0, 320, 3 * 128 + 1)
    writer = ShardWriter(tmp_path, 320, 1 << 20)
    writer.add(tokens.tolist())
    writer.close()
    expected = []
    for start in range(0, 128 * measured, 128):
        row = tokens[start : start + 129]
        logits = np.asarray(model(row[None, :-1]))[0]
        expected.append(np.logaddexp.reduce(logits, axis=-1) - logits[np.arange(128), row[1:]])
    monkeypatch.setattr(Llama, "__call__", None)
    losses = loss_by_position(model, tmp_path, 128, rows)
    np.testing.assert_allclose(losses, np.mean(expected, axis=0), atol=2e-3)  # as of the scorer
