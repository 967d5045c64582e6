"""The inputs of a model's matrices on text, and the sample that they are measured on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model import weights
from model.data import tokenizer as tokenizers
from model.data.shards import ShardWriter
from model.export import calibration
from model.export.calibration import importance, sample
from model.export.formats import hf
from model.export.names import shapes
from tests.conftest import SHAPE


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Token shards whose tokens are their own positions, in two files."""
    writer = ShardWriter(tmp_path / "text", 100_000, 30_000)
    writer.add(range(50_000))
    writer.close()
    return tmp_path / "text"


def test_sample_is_spread_over_the_whole_text_and_always_the_same(text: Path) -> None:
    rows = sample(text, SHAPE, 640, 2, "it")
    assert rows is not None and rows.shape == (10, 64) and np.array_equal(rows, sample(text, SHAPE, 640, 2, "it"))
    assert np.diff(rows, axis=1).min() == np.diff(rows, axis=1).max() == 1  # consecutive tokens
    assert rows[0, 0] == 0 and rows[-1, -1] == 49_999


def test_rows_are_no_longer_than_what_attention_takes_lightly(text: Path) -> None:
    rows = sample(text, replace(SHAPE, max_position_embeddings=32_768), 4096, 2, "it")
    assert rows is not None and rows.shape == (8, calibration.ROW)


def test_what_takes_too_long_or_has_too_little_text_is_not_calibrated(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample(None, SHAPE, 640, 2, "it") is None and not capsys.readouterr().out
    seven_billion = replace(SHAPE, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, vocab_size=32_000)
    assert sample(text, seven_billion, calibration.TOKENS, calibration.FORWARD, "it") is None
    assert capsys.readouterr().out == "it left out: 2e+14 operations, above 5e+13\n"
    writer = ShardWriter(tmp_path / "short", 512, 100)
    writer.add(range(20))
    writer.close()
    assert sample(tmp_path / "short", SHAPE, 640, 2, "it") is None
    assert capsys.readouterr().out == "it left out: fewer than 64 tokens of text\n"


@pytest.mark.parametrize("tied", [True, False])
def test_importance_is_the_mean_square_of_what_each_matrix_is_fed_in_transformers(
    saved_model: Path, tokenizer_file: Path, tmp_path: Path, tied: bool
) -> None:
    """Every linear layer of the exported model is watched while it reads the same rows."""
    import torch
    from transformers import AutoModelForCausalLM

    model = weights.read(saved_model / "weights")
    if tied:
        params = {name: part for name, part in model.params.items() if name != "head"}
        model = model._replace(config=replace(model.config, tie_word_embeddings=True), params=params)
    hf.write(tmp_path / "hf", model, tokenizers.load(str(tokenizer_file)), "float32")
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    watched: dict[str, np.ndarray] = {}
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Linear):
            key = "model.embed_tokens.weight" if tied and name == "lm_head" else f"{name}.weight"
            module.register_forward_pre_hook(
                lambda _, inputs, key=key: watched.update({key: inputs[0].square().mean((0, 1)).numpy()})
            )
    rows = sample(saved_model / "heldout", model.config, calibration.TOKENS, calibration.FORWARD, "it")
    with torch.no_grad():
        network(torch.tensor(rows, dtype=torch.long))
    measured = importance(model, saved_model / "heldout")
    assert measured is not None and measured.keys() == watched.keys()
    for name, columns in measured.items():
        assert columns.shape == shapes(model.config)[name][1:]
        np.testing.assert_allclose(columns, watched[name], rtol=1e-3, atol=1e-6)  # sums of float32 in another order
