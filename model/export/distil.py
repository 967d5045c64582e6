"""A model's matrices in small integers, fitted to text: rounded layer by layer, then their scales learned.

The scales and biases are learned as in mlx-lm's DWQ: the model with rounded weights learns the distribution that the
exact one gives each next token.

Letters in names: N rows, T time, B batch, V vocabulary, D model width, I inputs of a matrix, O its outputs.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from model import arrays, weights
from model.export import calibration
from model.export.calibration import Matrix
from model.export.gptq import Groups, corrected, fit
from model.stored import Stored

# The matrices of a layer as they are computed; those with the same inputs together.
ORDER: tuple[tuple[Matrix, ...], ...] = (
    (("attention", "query"), ("attention", "key"), ("attention", "value")),
    (("attention", "out"),),
    (("mlp", "gate"), ("mlp", "up")),
    (("mlp", "down"),),
)
STEPS, STEP_TOKENS = 100, 1024
ROUNDING, LEARNING = 7 * calibration.FORWARD, 4 * calibration.FORWARD  # operations for each token and parameter
RATE = 1.5e-3  # Adam's, of a scale relative to itself
BIAS = 8.0  # times that, in scales, for a bias: as far as the scale moves a code in the middle


def fitted(model: Stored, text: Path | None, bits: int, head: int, size: int) -> dict[str, Groups] | None:
    """Every matrix by its path in the network, those of the layers stacked, in groups of `size` codes of `bits`, and
    of `head` bits where it is the model's head.

    The scales are learned where that is affordable. None where no calibration is: see `calibration.sample`.
    """
    rows_NT = calibration.sample(text, model.config, calibration.TOKENS, ROUNDING, "fitted rounding")
    if rows_NT is None:
        return None
    groups = rounded(model, rows_NT, bits, head, size)
    rows_NT = calibration.sample(text, model.config, STEPS * STEP_TOKENS, LEARNING, "learning of scales")
    return groups if rows_NT is None else learned(model, groups, rows_NT)


def rounded(model: Stored, rows_NT: np.ndarray, bits: int, head: int, size: int) -> dict[str, Groups]:
    """Every matrix by its path in the network, those of the layers stacked.

    Each is rounded for the inputs that it gets from the layers before it, which are rounded already.
    """
    network = weights.network(model)
    run, tokens_NT = calibration.tracer(network, rows_NT.shape[1]), jnp.asarray(rows_NT)
    table_VD = np.asarray(network.embedding[...])
    moments_DD = np.eye(table_VD.shape[1])
    if network.head is None:
        x_NTD = network.embed(tokens_NT)
        for layer in calibration.layers(network):
            _, x_NTD = run(layer, x_NTD)
        moments_DD = products(network.norm(x_NTD), network.norm(x_NTD))
    groups = {"embedding": fit(table_VD, moments_DD, head if network.head is None else bits, size)}
    exact_NTD, actual_NTD = network.embed(tokens_NT), jnp.asarray(groups["embedding"].dense()[rows_NT])
    stacks: dict[str, list[Groups]] = {f"layers/{part}/{name}/kernel": [] for same in ORDER for part, name in same}
    for layer in calibration.layers(network):
        wanted, exact_NTD = run(layer, exact_NTD)
        for same in ORDER:
            inputs, _ = run(layer, actual_NTD)
            moments_II, cross_II = (products(x[same[0]], inputs[same[0]]) for x in (inputs, wanted))
            for part, name in same:
                kernel = layer[part][name]["kernel"]
                kernel_OI = corrected(np.asarray(kernel[...]).T, moments_II, cross_II)
                stacks[f"layers/{part}/{name}/kernel"].append(fitted := fit(kernel_OI, moments_II, bits, size))
                kernel[...] = jnp.asarray(fitted.dense().T)
        _, actual_NTD = run(layer, actual_NTD)
    groups |= {name: Groups(*map(np.stack, zip(*stack, strict=True))) for name, stack in stacks.items()}
    if network.head is not None:
        exact_NTD, actual_NTD = network.norm(exact_NTD), network.norm(actual_NTD)
        moments_DD, cross_DD = (products(x_NTD, actual_NTD) for x_NTD in (actual_NTD, exact_NTD))
        head_VD = corrected(np.asarray(network.head[...]), moments_DD, cross_DD)
        groups["head"] = fit(head_VD, moments_DD, head, size)
    return groups


def products(x_NTI: jax.Array, y_NTI: jax.Array) -> np.ndarray:
    """The mean over all tokens of x yᵀ."""
    return np.asarray(jnp.einsum("nti,ntj->ij", x_NTI, y_NTI) / x_NTI[..., 0].size)


def learned(model: Stored, groups: dict[str, Groups], rows_NT: np.ndarray) -> dict[str, Groups]:
    """The same codes with scales and biases that give the model's distributions best, learned in one pass over rows."""
    graph, state = weights.abstract(model.config)
    template = nnx.to_pure_dict(state)
    exact = jax.tree.map(lambda leaf: jnp.asarray(leaf, "float32"), model.params)
    start = {name: Groups(*map(jnp.asarray, of)) for name, of in groups.items()}
    batch = max(1, STEP_TOKENS // rows_NT.shape[1])
    steps = max(1, len(rows_NT) // batch)
    optimizer = optax.adam(optax.linear_schedule(RATE, 0.0, steps), b2=0.95)

    def loss(
        shifts: dict[str, jax.Array], start: dict[str, Groups], exact: dict[str, Any], rows_BT: jax.Array
    ) -> jax.Array:
        """The KL divergence but for the entropy of the exact distribution, which nothing changes."""
        params = arrays.flatten(exact) | {name: dense(name, of) for name, of in moved(start, shifts).items()}
        logits_BTV = weights.build(graph, state, arrays.unflatten(template, params))(rows_BT)
        exact_BTV = weights.build(graph, state, exact)(rows_BT)
        return optax.softmax_cross_entropy(logits_BTV, jax.nn.softmax(exact_BTV)).mean()

    @jax.jit
    def step(shifts: dict[str, jax.Array], moments: optax.OptState, *known: Any) -> Any:
        updates, moments = optimizer.update(jax.grad(loss)(shifts, *known), moments)
        return optax.apply_updates(shifts, updates), moments

    shifts = {name: jnp.zeros((2, *of.scales.shape)) for name, of in start.items()}
    moments = optimizer.init(shifts)
    order = np.random.default_rng(0).permutation(len(rows_NT))
    for number in range(steps):
        rows_BT = rows_NT[order[number * batch : (number + 1) * batch]]
        shifts, moments = step(shifts, moments, start, exact, jnp.asarray(rows_BT))
    return {name: Groups(*map(np.asarray, of)) for name, of in moved(start, shifts).items()}


def moved(start: dict[str, Groups], shifts: dict[str, jax.Array]) -> dict[str, Groups]:
    """Groups with their scales and biases shifted, `[2, …, outputs, groups]` for each matrix."""
    return {
        name: Groups(of.codes, of.scales * (1 + shifts[name][0]), of.biases + BIAS * of.scales * shifts[name][1])
        for name, of in start.items()
    }


def dense(name: str, groups: Groups) -> Any:
    """A matrix as the network has it: `[…, inputs, outputs]`, or the rows of a table."""
    weights_OI = groups.dense()
    return weights_OI.swapaxes(-1, -2) if name.endswith("kernel") else weights_OI
