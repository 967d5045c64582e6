import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.training import loss as losses
from model.training.loss import cross_entropy


def plain(x, head, targets, weights, z_loss):
    logits = jnp.einsum("btd,vd->btv", x, head)
    log_z = jax.nn.logsumexp(logits, -1)
    nll = log_z - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    return (weights * nll).sum(), (weights * (nll + z_loss * log_z**2)).sum()


@pytest.mark.parametrize("chunk", [7, 24, 4096])
def test_value_and_gradients_equal_those_of_the_plain_form(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(losses, "CHUNK", chunk)
    keys = jax.random.split(jax.random.key(0), 4)
    x, head = jax.random.normal(keys[0], (3, 24, 8)), jax.random.normal(keys[1], (50, 8))
    targets = jax.random.randint(keys[2], (3, 24), 0, 50)
    weights = (jax.random.uniform(keys[3], (3, 24)) > 0.4).astype(jnp.float32)
    np.testing.assert_allclose(
        cross_entropy(x, head, targets, weights, 1e-2), plain(x, head, targets, weights, 1e-2), rtol=1e-5
    )
    ours = jax.grad(lambda x, h: 0.3 * cross_entropy(x, h, targets, weights, 1e-2)[1], (0, 1))(x, head)
    theirs = jax.grad(lambda x, h: 0.3 * plain(x, h, targets, weights, 1e-2)[1], (0, 1))(x, head)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_logits_of_all_tokens_are_never_in_memory_at_once() -> None:
    """Compiled for 64 × 512 tokens and 8192 entries, the step needs far less than the gigabyte of their logits."""
    shapes = [jax.ShapeDtypeStruct(s, t) for s, t in (((64, 512, 16), "float32"), ((8192, 16), "float32"))]
    tokens = [jax.ShapeDtypeStruct((64, 512), t) for t in ("int32", "float32")]
    grad = jax.jit(jax.grad(lambda x, h, t, w: cross_entropy(x, h, t, w)[1], (0, 1)))
    temporary = grad.lower(*shapes, *tokens).compile().memory_analysis().temp_size_in_bytes
    assert temporary < 0.5 * 64 * 512 * 8192 * 4
