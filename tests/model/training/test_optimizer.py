from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from optax.contrib import MuonDimensionNumbers

from model.config import LlamaConfig
from model.llama import Llama
from model.training import optimizer as optimizers
from model.training.job import Recipe
from model.training.muon import orthogonalize
from model.training.optimizer import TRANSFER, WIDTH

RECIPE = Recipe(
    steps=100,
    batch_size=2,
    learning_rate=1e-2,
    optimizer="adamw",
    schedule="wsd",
    warmup_steps=10,
    decay_fraction=0.4,
    weight_decay=0.5,
    clip_norm=1.0,
    z_loss=0.0,
    seed=0,
    isolate_documents=False,
    gradient_accumulation_steps=1,
    spike_deviations=0.0,
    save_every_steps=50,
    save_every_minutes=60,
    save_share=0.0,  # which steps are saved does not depend on how fast they are
    disk_share=0.5,
    keep_checkpoints=2,
    verify_every_saves=2,
    full_disk_minutes=1,
    log_every_steps=1,
    evaluate_every_steps=50,
    evaluate_rows=2,
    snapshots=0,
)


def test_wsd_rises_stays_and_falls() -> None:
    rate = optimizers.schedule(RECIPE)
    assert [float(rate(step)) for step in (0, 5, 10, 59, 80, 100)] == pytest.approx([0, 5e-3, 1e-2, 1e-2, 5e-3, 0])


def test_wsd_ends_at_zero_where_its_decay_would_begin_before_the_end_of_the_warmup() -> None:
    rate = optimizers.schedule(replace(RECIPE, steps=20, decay_fraction=0.9))
    assert [float(rate(step)) for step in (5, 10, 15, 20)] == pytest.approx([5e-3, 1e-2, 5e-3, 0])


def test_cosine_ends_at_a_tenth() -> None:
    rate = optimizers.schedule(replace(RECIPE, schedule="cosine"))
    assert [float(rate(step)) for step in (10, 55, 100)] == pytest.approx([1e-2, 5.5e-3, 1e-3])


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_decay_skips_norms_and_embeddings(shape: LlamaConfig, name: str) -> None:
    """With no gradient at all, what still moves is what decays."""
    params = nnx.to_pure_dict(nnx.state(Llama(shape, rngs=nnx.Rngs(0)), nnx.Param))
    optimizer = optimizers.build(replace(RECIPE, optimizer=name, warmup_steps=0), WIDTH, "float32")
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    moved = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree_util.tree_flatten_with_path(updates)[0]
        if np.abs(leaf).max() > 1e-8
    }
    matrices = ("query", "key", "value", "out"), ("gate", "up", "down")
    assert moved == {
        f"layers/{part}/{m}/kernel" for part, names in zip(("attention", "mlp"), matrices, strict=True) for m in names
    }


def test_muon_makes_each_layers_update_orthogonal() -> None:
    params = {"query": {"kernel": jnp.zeros((2, 32, 32))}, "norm": {"scale": jnp.zeros((2, 32))}}
    grads = jax.tree.map(lambda p: jax.random.normal(jax.random.key(0), p.shape), params)
    optimizer = optimizers.build(replace(RECIPE, optimizer="muon", warmup_steps=0, weight_decay=0.0), WIDTH, "float32")
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    for layer in updates["query"]["kernel"]:
        singular = np.linalg.svd(layer, compute_uv=False)
        assert singular.max() / singular.min() < 4  # the random gradient's ratio is over 50


def test_muon_is_optax_muon_to_the_bit_on_a_cpu() -> None:
    """Theirs unrolls on every device, computes in float32 alone, and knows of no devices; else it is the same."""
    stacked = MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    recipe = replace(RECIPE, optimizer="muon", warmup_steps=0)
    theirs = optax.chain(
        optax.clip_by_global_norm(recipe.clip_norm),
        optax.contrib.muon(
            optimizers.schedule(recipe),
            weight_decay=recipe.weight_decay,
            weight_decay_mask=optimizers.decays,
            consistent_rms=0.2,
            adam_b2=optimizers.SQUARES,
            adam_weight_decay=0.0,
            muon_weight_dimension_numbers=lambda params: jax.tree.map(
                lambda decayed: stacked if decayed else None, optimizers.decays(params)
            ),
        ),
    )
    shapes = {"wide": (3, 24, 72), "tall": (3, 72, 24), "square": (3, 24, 24)}
    keys = iter(jax.random.split(jax.random.key(0), 9))
    params = {name: {"kernel": jax.random.normal(next(keys), shape)} for name, shape in shapes.items()}
    params |= {"norm": {"scale": jnp.ones((3, 24))}, "table": jax.random.normal(next(keys), (50, 24))}
    ends = []
    for optimizer in (theirs, optimizers.build(recipe, WIDTH, "float32")):

        @jax.jit
        def step(params, state, key, optimizer=optimizer):
            grads = jax.tree.map(lambda leaf: jnp.cos(leaf) * jax.random.normal(key, leaf.shape), params)
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        learned, state = params, optimizer.init(params)
        for number in range(4):
            learned, state = step(learned, state, jax.random.key(number))
        ends.append(learned)
    jax.tree.map(np.testing.assert_array_equal, *ends)


@pytest.mark.parametrize(("name", "times"), [("muon", optimizers.EMBEDDING), ("adamw", 1.0)])
def test_embeddings_learn_faster_under_muon(name: str, times: float) -> None:
    """With equal gradients, beside an untied head of the same numbers."""
    table = jax.random.normal(jax.random.key(0), (50, 24))
    params = {"embedding": table, "head": table}
    optimizer = optimizers.build(replace(RECIPE, optimizer=name, warmup_steps=0), WIDTH, "float32")
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_allclose(updates["embedding"], times * updates["head"], rtol=1e-5)


def test_all_but_the_vectors_learn_slower_under_muon_in_a_wider_model() -> None:
    """Weights and their gradients are the same, and decay too."""
    params = {"kernel": jnp.eye(24)[None], "embedding": jnp.eye(24), "head": jnp.eye(24), "scale": jnp.ones(24)}
    updates = []
    for width in (WIDTH, 16 * WIDTH):
        optimizer = optimizers.build(replace(RECIPE, optimizer="muon", warmup_steps=0), width, "float32")
        updates.append(optimizer.update(params, optimizer.init(params), params)[0])
    for name, factor in {"kernel": 16**-TRANSFER, "embedding": 1 / 8, "head": 1 / 8, "scale": 1.0}.items():
        np.testing.assert_allclose(updates[1][name], factor * updates[0][name], rtol=1e-5, err_msg=name)


def test_adamws_rate_is_the_same_at_every_width() -> None:
    params = {"kernel": jnp.eye(24)[None], "embedding": jnp.eye(24)}
    narrow, wide = (optimizers.build(replace(RECIPE, warmup_steps=0), width, "float32") for width in (WIDTH, 2048))
    jax.tree.map(
        np.testing.assert_array_equal, *(each.update(params, each.init(params), params)[0] for each in (narrow, wide))
    )


def test_muon_in_bfloat16_is_orthogonal_too() -> None:
    m_LIO = jax.random.normal(jax.random.key(0), (2, 48, 32))
    for layer in orthogonalize(m_LIO.astype("bfloat16")).astype("float32"):
        singular = np.linalg.svd(layer, compute_uv=False)
        assert singular.min() > 0.5 and singular.max() < 1.4  # the iteration's own bounds, and bfloat16's error


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_optimizer_descends(name: str) -> None:
    target = jax.random.normal(jax.random.key(0), (2, 16, 16))
    params = {"kernel": jnp.zeros_like(target)}
    optimizer = optimizers.build(
        replace(RECIPE, optimizer=name, weight_decay=0.0, learning_rate=0.05), WIDTH, "float32"
    )
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: ((p["kernel"] - target) ** 2).mean())(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(100):
        params, state = step(params, state)
    assert float(((params["kernel"] - target) ** 2).mean()) < 0.3 * float((target**2).mean())
