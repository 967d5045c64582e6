"""The presets' steps, compiled for the cards that they are for by XLA's CUDA compiler; no GPU is needed.

`make test-cuda` runs them in an environment with the extra `cuda`.
"""

import math
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import pytest

from flows.cli.plan import pretraining_job
from flows.config import load
from model.accelerators import ACCELERATORS, GIB, USABLE
from model.training.compiled import bytes_of, compile_step, mesh_of, state_shapes
from model.training.hlo import Operation, operations
from model.training.job import Job
from model.training.plan import cuda_compiler
from model.training.program import Program
from model.training.roofline import estimate

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not cuda_compiler(), reason="the extra `cuda` is not installed: XLA's CUDA compiler, 4 GB"),
]
PRESETS = [
    ("koda-1.3b", "L40S", 2),
    ("koda-1.3b", "H100", 1),
    ("koda-1.3b", "H200", 1),
    ("koda-400m", "L40S", 1),
    ("koda-124m", "RTX4090", 1),
]


def job_of(preset: str, rows: int = 0, packed: bool = False, **compute: Any) -> Job:
    job = pretraining_job(load(preset))
    recipe = replace(job.recipe, batch_size=rows or job.recipe.batch_size, isolate_documents=packed)
    return replace(job, recipe=recipe, compute=replace(job.compute, **compute))


@cache
def compiled(preset: str, card: str, count: int, **changes: Any) -> tuple[int, int, list[Operation]]:
    """Bytes of state, bytes of temporaries, and kernels of the step on one of the devices."""
    job = job_of(preset, **changes)
    step = compile_step(job, mesh_of(ACCELERATORS[card], count, job.fsdp, job.tensor))
    return *bytes_of(step), operations(step.as_text())


@pytest.mark.parametrize(("preset", "card", "count"), PRESETS)
def test_preset_fits_and_uses_the_tensor_cores(preset: str, card: str, count: int) -> None:
    """In memory; attention by cuDNN, once forward and once backward a layer; and no products in float32, neither the
    network's nor Muon's."""
    state, temporary, kernels = compiled(preset, card, count)
    assert state + temporary < USABLE * ACCELERATORS[card].memory
    job = job_of(preset)
    passes = job.model.num_hidden_layers * job.recipe.gradient_accumulation_steps
    assert sum(kernel.times for kernel in kernels if kernel.kind == "attention") == 2 * passes
    products = [kernel for kernel in kernels if kernel.kind == "gemm"]
    total = sum(kernel.times * kernel.flops for kernel in products)
    assert sum(kernel.times * kernel.flops for kernel in products if kernel.name != "bf16") < 1e-3 * total


@pytest.mark.parametrize(("preset", "card", "count"), PRESETS)
def test_arithmetic_is_what_the_model_and_the_optimizer_need(preset: str, card: str, count: int) -> None:
    """6 FLOP a weight in products and token; for each matrix, five iterations of 2 M²N + 2 M³ + 2 M²N, shared out.

    Where a card's memory is short (L40S), XLA itself computes some products again, 1.6 % of them.
    """
    job = job_of(preset)
    shape, tokens = job.model, job.recipe.batch_size * job.sequence_length
    matrices = [leaf.shape for leaf in state_kernels(job).values()]
    weights = sum(math.prod(sizes) for sizes in matrices) + shape.vocab_size * shape.hidden_size
    muon = sum(layers * 5 * (4 * min(i, o) ** 2 * max(i, o) + 2 * min(i, o) ** 3) for layers, i, o in matrices)
    _, _, kernels = compiled(preset, card, count)
    found = sum(kernel.times * kernel.flops for kernel in kernels if kernel.kind == "gemm")
    needed = (6 * weights * tokens + muon) / count
    assert 0.99 * needed < found < (1.02 if card == "L40S" else 1.01) * needed


def state_kernels(job: Job) -> dict[str, jax.ShapeDtypeStruct]:
    """The stacked matrices, by path."""
    params = state_shapes(Program(job), jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"))).params
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    return {jax.tree_util.keystr(path): leaf for path, leaf in flat if "kernel" in jax.tree_util.keystr(path)}


@pytest.mark.parametrize(("card", "count"), [("H200", 1), ("L40S", 2)])
def test_packed_rows_are_for_cudnn_too(card: str, count: int) -> None:
    """In blocks, their attention took six times as long on an H200."""
    _, _, kernels = compiled("koda-124m", card, count, packed=True, remat="full", scan=True)
    layers = load("koda-124m").model.num_hidden_layers
    assert sum(kernel.times for kernel in kernels if kernel.kind == "attention") == 3 * layers  # once again, recomputed


def test_remat_keeps_what_it_says() -> None:
    """full < dots < none: a dots that sees no products computes all of them again, and takes no more than full."""
    _, full, _ = compiled("koda-1.3b", "H200", 1, remat="full", scan=True)
    _, dots, _ = compiled("koda-1.3b", "H200", 1, remat="dots", scan=True)
    _, none, _ = compiled("koda-1.3b", "H200", 1)
    assert full < 12 * GIB < 30 * GIB < dots < 36 * GIB < none < 50 * GIB


def test_twice_the_rows_fit_on_an_h200() -> None:
    state, temporary, _ = compiled("koda-1.3b", "H200", 1, rows=64)
    assert state + temporary < USABLE * ACCELERATORS["H200"].memory


def test_two_cards_exchange_gradients_and_updates_and_no_more() -> None:
    """The gradients once: of the matrices in bfloat16, of the two vocabularies in float32. The matrices' updates once,
    in bfloat16. And neither in Muon's iterations nor in the chunks of the loss anything at all."""
    job = job_of("koda-1.3b")
    matrices = sum(math.prod(leaf.shape) for leaf in state_kernels(job).values())
    bound = 2 * matrices + 2 * 4 * (job.model.vocab_size + 127) * job.model.hidden_size + 2 * matrices
    _, _, kernels = compiled("koda-1.3b", "L40S", 2)
    moved = sum(kernel.times * kernel.wire for kernel in kernels)
    assert 0.9 * bound < moved < 1.01 * bound and moved < 6e9


def test_reference_run_is_predicted_within_its_25_hours() -> None:
    job = job_of("koda-1.3b")
    time = estimate(compiled("koda-1.3b", "L40S", 2)[2], ACCELERATORS["L40S"], 2)
    assert time.middle * job.recipe.steps / 3600 < 16 and time.high * job.recipe.steps / 3600 < 18


@pytest.mark.parametrize(
    ("form", "milliseconds", "taken"),
    [
        ({}, 541.4, 62467335168),
        ({"remat": "dots", "scan": True}, 590.4, 47122863872),
        ({"remat": "full", "scan": True}, 651.9, 22209225728),
    ],
    ids=["none", "dots", "full"],
)
def test_what_an_h200_took_is_predicted(form: dict[str, Any], milliseconds: float, taken: int) -> None:
    """Milliseconds and `peak_bytes_in_use` of `bench/gpu.py` on one."""
    state, temporary, kernels = compiled("koda-1.3b", "H200", 1, **form)
    time = estimate(kernels, ACCELERATORS["H200"], 1)
    assert time.low < milliseconds / 1e3 < time.high and time.middle == pytest.approx(milliseconds / 1e3, rel=0.06)
    assert state + temporary == pytest.approx(taken, rel=0.05)


def test_state_is_what_the_shapes_say() -> None:
    job = job_of("koda-1.3b")
    mesh = mesh_of(ACCELERATORS["L40S"], 2, 1, 1)
    shapes = jax.tree.leaves(state_shapes(Program(job), mesh))
    batch = 3 * 4 * job.recipe.batch_size // 2 * job.sequence_length  # tokens, targets and weights
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in shapes)
    assert compiled("koda-1.3b", "L40S", 2)[0] == pytest.approx(size + batch, abs=1e5)
