"""MLX's 4 bits, fitted to a text: nearer to the model than mlx-lm's own rounding, on text that was not used."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from model import arrays, weights
from model.data import tokenizer as tokenizers
from model.data.shards import ShardWriter
from model.export import calibration, distil, tensors
from model.export.convert import write
from model.export.formats import hf, mlx
from model.export.gptq import Groups
from model.files import read_json
from model.llama import Llama
from model.stored import Stored
from tests.conftest import SHAPE

ABOUT = {"name": "m", "author": "", "license": "", "url": "", "datasets": []}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path, prose: str) -> Path:
    """A model that has learned something of `train`, and `heldout`, which it has not seen."""
    folder = tmp_path_factory.mktemp("trained")
    ids = tokenizers.load(str(tokenizer_file)).plain(prose[:300_000])
    for part, tokens in (("train", ids[5_000:]), ("heldout", ids[:5_000])):
        writer = ShardWriter(folder / part, 512, 1 << 20)
        writer.add(tokens)
        writer.close()
    network = Llama(replace(SHAPE, vocab_size=512, tie_word_embeddings=True), rngs=nnx.Rngs(0))
    graph, state = nnx.split(network)
    optimizer = optax.adam(optax.linear_schedule(1e-2, 0.0, 300), b2=0.95)

    @jax.jit
    def step(state: nnx.State, moments: optax.OptState, rows: jax.Array) -> tuple[nnx.State, optax.OptState]:
        def loss(state: nnx.State) -> jax.Array:
            logits = nnx.merge(graph, state)(rows[:, :-1])
            return optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:]).mean()

        updates, moments = optimizer.update(jax.grad(loss)(state), moments)
        return optax.apply_updates(state, updates), moments

    moments, draw = optimizer.init(state), np.random.default_rng(0)
    for _ in range(300):
        starts = draw.integers(0, len(ids) - 5_065, 16)
        state, moments = step(state, moments, jnp.asarray([ids[5_000 + n : 5_065 + n] for n in starts]))
    weights.save(folder / "weights", nnx.merge(graph, state))
    return folder


@pytest.fixture(scope="module")
def divergence(trained: Path) -> Callable[[Stored], float]:
    """The mean KL divergence of a model from the trained one on the held-out text, in nats."""
    exact = weights.read(trained / "weights")
    rows = calibration.sample(trained / "heldout", exact.config, 4096, 2, "")

    def logprobs(model: Stored) -> jax.Array:
        return jax.nn.log_softmax(weights.network(model)(jnp.asarray(rows)))

    p = logprobs(exact)
    return lambda model: float((jnp.exp(p) * (p - logprobs(model))).sum(-1).mean())


def with_groups(model: Stored, groups: dict[str, Groups]) -> Stored:
    named = arrays.flatten(model.params) | {name: distil.dense(name, of) for name, of in groups.items()}
    return model._replace(params=arrays.unflatten(model.params, named))


def export(trained: Path, tokenizer_file: Path, out: Path, text: Path | None) -> Path:
    parts = [str(trained / "weights"), str(tokenizer_file), str(out)]
    write(*parts, ABOUT, {"hf": ("auto",), "mlx": ("4bit",)}, None if text is None else str(text))
    return out / "mlx/4bit"


def test_fitted_export_is_nearer_to_the_model_than_the_plain_one(
    trained: Path, tokenizer_file: Path, tmp_path: Path, divergence: Callable[[Stored], float]
) -> None:
    """By half of the divergence; mlx-lm opens it and computes what its numbers say."""
    plain = export(trained, tokenizer_file, tmp_path / "plain", None)
    fitted = export(trained, tokenizer_file, tmp_path / "fitted", trained / "train")
    assert divergence(mlx.read(fitted)) < 0.5 * divergence(mlx.read(plain))
    assert {path.name for path in fitted.iterdir()} == {path.name for path in plain.iterdir()}
    assert tensors.headers(fitted) == tensors.headers(plain)
    ids = list(range(5, 60))
    theirs = mlx.MlxLm(fitted).probe(ids, [10, 55], []).next_NV
    ours = jax.nn.log_softmax(weights.network(mlx.read(fitted))(jnp.asarray([ids])))[0, [9, 54]]
    np.testing.assert_allclose(theirs, ours, atol=1e-3)  # float32; the scales are read as float16 by both


def test_each_part_of_the_fit_helps(trained: Path, divergence: Callable[[Stored], float]) -> None:
    """Rounding layer by layer, and learning, on text that neither has seen; the codes stay as they were rounded."""
    model = weights.read(trained / "weights")
    rows = calibration.sample(trained / "train", model.config, calibration.TOKENS, 2, "")
    more = calibration.sample(trained / "train", model.config, distil.STEPS * distil.STEP_TOKENS, 2, "")
    assert rows is not None and more is not None
    rounded = distil.rounded(model, rows, 4, 6, 64)
    learned = distil.learned(model, rounded, more)
    assert divergence(with_groups(model, learned)) < 0.9 * divergence(with_groups(model, rounded))
    for name, groups in learned.items():
        assert np.array_equal(groups.codes, rounded[name].codes) and not np.array_equal(
            groups.scales, rounded[name].scales
        )


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_codes_are_packed_as_mlx_unpacks_them(bits: int) -> None:
    import mlx.core as mx

    codes_OGS = np.random.default_rng(0).integers(0, 2**bits, (5, 3, 64), np.uint8)
    ones_OG = mx.ones((5, 3))
    codes_OI = mx.dequantize(mx.array(mlx.packed(codes_OGS, bits)), ones_OG, 0 * ones_OG, group_size=64, bits=bits)
    assert np.array_equal(np.array(codes_OI).reshape(5, 3, 64), codes_OGS)


@pytest.mark.parametrize("tied", [True, False])
def test_head_keeps_six_bits(tokenizer_file: Path, tmp_path: Path, tied: bool) -> None:
    """As in llama.cpp's Q4_K_M; the embedding alone has four, as the other matrices."""
    network = Llama(replace(SHAPE, vocab_size=512, tie_word_embeddings=tied), rngs=nnx.Rngs(0))
    weights.save(tmp_path / "weights", network)
    hf.write(tmp_path / "hf", weights.read(tmp_path / "weights"), tokenizers.load(str(tokenizer_file)), "auto")
    mlx.write(tmp_path / "4bit", tmp_path / "hf", "4bit")
    config = read_json(tmp_path / "4bit/config.json")["quantization"]
    own = {name: layer["bits"] for name, layer in config.items() if isinstance(layer, dict)}
    assert config["bits"] == 4 and own == {"model.embed_tokens" if tied else "lm_head": 6}


def test_head_of_its_own_is_fitted_too(saved_model: Path, tokenizer_file: Path, tmp_path: Path) -> None:
    """A model whose embedding and head are two matrices: both are in the groups, and in the folder."""
    model = weights.read(saved_model / "weights")
    groups = distil.fitted(model, saved_model / "heldout", 4, 6, 64)
    assert groups is not None and {"embedding", "head"} <= groups.keys()
    hf.write(tmp_path / "hf", model, tokenizers.load(str(tokenizer_file)), "auto")
    mlx.write(tmp_path / "4bit", tmp_path / "hf", "4bit", groups)
    stored, expected = (arrays.flatten(of.params) for of in (mlx.read(tmp_path / "4bit"), with_groups(model, groups)))
    for name in groups:  # but for float16 scales and biases: 11 bits of at most as many scales as there are codes
        widest = float(np.abs(groups[name].scales).max() * groups[name].codes.max())
        np.testing.assert_allclose(stored[name], expected[name], atol=widest * 2**-11 * 2)
