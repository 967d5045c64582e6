"""What the matrices of a model multiply on text that it was trained on: the basis of roundings that cost less.

Letters in names: N rows, T time, D model width, I inputs of a matrix, P rotary pairs.
"""

import operator
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model import weights
from model.attention import attend
from model.config import LlamaConfig
from model.data.shards import Shards
from model.export.formats.format import LEFT_OUT
from model.export.names import MODULES, head_module
from model.llama import Block, Llama
from model.stored import Stored

ROW = 512  # tokens of a row at most: a column's size depends little on the context, the cost of attention much
TOKENS = 16_384  # that are measured
# Floating-point operations that a calibration may take: minutes on a few CPU cores, and on a GPU.
AFFORDABLE = {"cpu": 5e13}
AFFORDABLE_ELSEWHERE = 2e15
FORWARD = 2  # of them for each token and parameter, where a model is computed once

Matrix = tuple[str, str]  # its path in a Block


def sample(text: Path | None, config: LlamaConfig, tokens: int, operations: float, what: str) -> np.ndarray | None:
    """About so many tokens from all over the shards `text`, in rows, `[rows, tokens]`: the same each time.

    None where there is no text; and, with a line on `what` is then left out, where it is shorter than a row, or where
    so many floating-point operations for each token and parameter take too long on this machine.
    """
    if text is None:
        return None
    shards, length = Shards(text), min(config.max_position_embeddings, ROW)
    cost, most = operations * tokens * config.parameters, AFFORDABLE.get(jax.default_backend(), AFFORDABLE_ELSEWHERE)
    if cost > most or len(shards) < length:
        why = f"{cost:.0e} operations, above {most:.0e}" if cost > most else f"fewer than {length} tokens of text"
        print(f"{what}{LEFT_OUT}{why}")
        return None
    starts = np.linspace(0, len(shards) - length, max(1, tokens // length)).astype(int).tolist()
    return np.stack([shards.read(start, length)[0] for start in starts])


def importance(model: Stored, text: Path | None) -> dict[str, np.ndarray] | None:
    """llama.cpp's importance matrix: the mean square of the inputs of each matrix, `[inputs]` by transformers' name.

    It is how much a squared error in a column costs. The one of a tied embedding is the head's. None: see `sample`.
    """
    rows_NT = sample(text, model.config, TOKENS, FORWARD, "importance matrix")
    if rows_NT is None:
        return None
    network = weights.network(model)
    run = tracer(network, rows_NT.shape[1])
    measured: dict[str, np.ndarray] = {}
    x_NTD = network.embed(jnp.asarray(rows_NT))
    for number, layer in enumerate(layers(network)):
        inputs, x_NTD = run(layer, x_NTD)
        for matrix, module in MODULES.items():
            measured[f"model.layers.{number}.{module}.weight"] = mean_square(inputs[matrix])
    measured[f"{head_module(model.config.tie_word_embeddings)}.weight"] = mean_square(network.norm(x_NTD))
    return measured


def mean_square(x_NTI: jax.Array) -> np.ndarray:
    return np.asarray(jnp.mean(x_NTI * x_NTI, axis=(0, 1)))


def layers(network: Llama) -> Iterator[nnx.State]:
    """The weights of each layer."""
    _, stacked = nnx.split(network.layers)
    for number in range(network.config.num_hidden_layers):
        yield jax.tree.map(operator.itemgetter(number), stacked)


def tracer(network: Llama, length: int) -> Callable[[nnx.State, jax.Array], tuple[dict[Matrix, jax.Array], jax.Array]]:
    """`trace` for layers of this network and rows of `length` tokens, compiled once for all of them."""
    graph, _ = nnx.split(network.layers)
    angles_NTP = network.angles(jnp.arange(length)[None])
    return jax.jit(lambda layer, x_NTD: trace(nnx.merge(graph, layer), x_NTD, angles_NTP))


def trace(block: Block, x_NTD: jax.Array, angles_NTP: jax.Array) -> tuple[dict[Matrix, jax.Array], jax.Array]:
    """What each matrix of a block multiplies, `[rows, tokens, inputs]`, and the block's output."""
    attention_NTD = block.attention_norm(x_NTD)
    q_NTHA, k_NTKA, v_NTKA = block.attention.project(attention_NTD, angles_NTP)
    heads_NTI = attend(q_NTHA, k_NTKA, v_NTKA, None).reshape(*x_NTD.shape[:2], -1)
    x_NTD = x_NTD + block.attention.out(heads_NTI)
    mlp_NTD = block.mlp_norm(x_NTD)
    inner_NTI = jax.nn.silu(block.mlp.gate(mlp_NTD)) * block.mlp.up(mlp_NTD)
    inputs: dict[Matrix, jax.Array] = {("attention", name): attention_NTD for name in ("query", "key", "value")}
    inputs |= {("attention", "out"): heads_NTI, ("mlp", "down"): inner_NTI}
    inputs |= {("mlp", name): mlp_NTD for name in ("gate", "up")}
    return inputs, x_NTD + block.mlp.down(inner_NTI)
