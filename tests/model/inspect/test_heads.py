"""Scores of heads: what a head that was built by hand gets, and what chance gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model.config import LlamaConfig
from model.inspect import heads
from model.inspect.ablation import ablations
from model.inspect.circuits import copying
from model.inspect.heads import HeadScores
from model.inspect.walk import compiled, next_token_losses, walk
from model.llama import Llama

V, A, TIME = 16, 64, 64
# The stream of the built model: the current token, the token before it, the prediction, and a component that is 1
# everywhere, from which queries and keys that depend on position alone are made.
TOKEN, BEFORE, PREDICTED, ONE = slice(0, V), slice(V, 2 * V), slice(2 * V, 3 * V), 3 * V
BUILT = LlamaConfig(
    vocab_size=V,
    hidden_size=A,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=A,
    intermediate_size=8,
    max_position_embeddings=TIME,
)
SLOW = slice(A // 4, A // 2)  # rotary pairs that hardly turn within the context, and carry the tokens


@pytest.fixture(scope="module")
def built() -> Llama:
    """Two layers that do induction, weight by weight: head 0 of the first writes each position's previous token into
    the stream; head 1 of the second attends to where that is the current token, and predicts the token there."""
    model = Llama(BUILT, rngs=nnx.Rngs(0))
    nnx.update(model, jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param)))
    model.norm.scale[...] = jnp.ones(A)
    model.layers.attention_norm.scale[...] = jnp.ones((2, A))
    embedding = np.zeros((V, A))
    embedding[:, TOKEN], embedding[:, ONE] = np.eye(V), 1
    model.embedding[...] = jnp.asarray(embedding)
    head = np.zeros((V, A))
    head[:, PREDICTED] = 2 * np.eye(V)
    assert model.head is not None
    model.head[...] = jnp.asarray(head)
    query, key, value, out = (np.zeros((2, A, 2, A)) for _ in range(4))  # layers, from the stream, heads, components
    # Previous token: the query is the key of every position, turned on by one position, so that each rotary pair agrees
    # best with the key one position before.
    pairs = A // 2
    frequency = 10_000.0 ** (-np.arange(pairs) / pairs)
    key[0, ONE, 0, :pairs] = query[0, ONE, 0, :pairs] = 0
    key[0, ONE, 0, :pairs] = 12
    query[0, ONE, 0, :pairs], query[0, ONE, 0, pairs:] = 12 * np.cos(-frequency), 12 * np.sin(-frequency)
    value[0, TOKEN, 0, :V] = np.eye(V)
    out[0, BEFORE, 0, :V] = np.eye(V)
    # Induction: the query is the current token, the key the token before; both in pairs that hardly turn.
    query[1, TOKEN, 1, SLOW] = key[1, BEFORE, 1, SLOW] = 30 * np.eye(V)
    value[1, TOKEN, 1, :V] = np.eye(V)
    out[1, PREDICTED, 1, :V] = np.eye(V)
    attention = model.layers.attention
    for linear, weights in ((attention.query, query), (attention.key, key), (attention.value, value)):
        linear.kernel[...] = jnp.asarray(weights.reshape(2, A, 2 * A))
    attention.out.kernel[...] = jnp.asarray(out.transpose(0, 2, 3, 1).reshape(2, 2 * A, A))
    return model


@pytest.fixture(scope="module")
def texts() -> heads.Probe:
    """Rows without a token twice in the first half of the repeated ones, so that an earlier occurrence is one place."""
    draw = np.random.default_rng(0)
    halves = np.stack([draw.permutation(V) for _ in range(8)])
    return heads.Probe(
        jnp.asarray(draw.integers(0, V, (8, TIME))), jnp.asarray(np.concatenate([halves, halves], axis=1))
    )


def scores(model: Llama, texts: heads.Probe) -> HeadScores:
    return jax.tree.map(np.asarray, compiled(heads.score)(model, texts).scores)


def test_built_induction_is_found_where_it_was_built(built: Llama, texts: heads.Probe) -> None:
    seen = scores(built, texts)
    assert seen.induction[1, 1] > 0.9 and seen.induction[0].max() < 0.2 and seen.induction[1, 0] < 0.2
    assert seen.previous[0, 0] > 0.9 and seen.previous[0, 1] < 0.2 and seen.previous[1].max() < 0.2
    both = compiled(heads.score)(built, texts)
    assert both.second_losses < 0.5 < 2 < both.first_losses  # what was seen before is known, and nothing else


def test_head_that_copies_has_positive_eigenvalues(built: Llama, texts: heads.Probe) -> None:
    """Of the token embedding, through the built head, into the logits of the same token."""
    assert copying(built)[1, 1] == pytest.approx(1, abs=1e-4)
    assert copying(built)[0, 1] == 0  # writes nothing
    assert scores(built, texts).writes[1, 1] > 1
    attention = built.layers.attention
    kernel = attention.out.kernel[...]
    attention.out.kernel[...] = -kernel
    try:
        assert copying(built)[1, 1] == pytest.approx(-1, abs=1e-4)
        assert scores(built, texts).writes[1, 1] < -1
    finally:
        attention.out.kernel[...] = kernel


def test_random_weights_score_chance(texts: heads.Probe) -> None:
    """Small random weights attend evenly: each score is that of uniform attention."""
    seen = scores(Llama(BUILT, rngs=nnx.Rngs(0)), texts)
    for name, level in heads.chance(texts).items():
        bound = 0.1 * level if level else 0.2  # nats, of `writes`
        assert np.abs(getattr(seen, name) - level).max() < bound, name
    circuits = copying(Llama(BUILT, rngs=nnx.Rngs(0)))
    assert np.abs(circuits).max() < 0.6  # of 64 eigenvalues, whose real parts mostly cancel


def test_ablating_a_head_that_writes_nothing_changes_nothing(built: Llama, texts: heads.Probe) -> None:
    saved = ablations(built, jnp.tile(texts.repeated_BT, 2))  # three quarters of it are known from before
    assert saved[1, 1] > 1 and saved[0, 0] > 1  # both are needed for induction
    assert saved[0, 1] == 0 == saved[1, 0]


def test_walk_is_the_model(model: Llama, tokens: jax.Array) -> None:
    """The same logits, to the rounding of another order of sums."""
    last, _ = walk(model, tokens, lambda _: None)
    expected = model(tokens)
    assert jnp.abs(model.logits(model.norm(last)) - expected).max() < 1e-4 * jnp.abs(expected).max()
    losses = next_token_losses(model, last, tokens)
    logp = jax.nn.log_softmax(expected[:, :-1])
    assert jnp.allclose(losses, -jnp.take_along_axis(logp, tokens[:, 1:, None], -1)[..., 0], atol=1e-3)


def test_random_text_is_of_the_commonest_tokens_and_repeats() -> None:
    counts = np.array([0, 5, 3, 0, 9])
    texts = heads.probe(jnp.zeros((2, 10), int), counts, rows=3)
    assert texts.repeated_BT.shape == (3, 10) and set(np.unique(texts.repeated_BT)) <= {1, 2, 4}
    assert (texts.repeated_BT[:, :5] == texts.repeated_BT[:, 5:]).all()
