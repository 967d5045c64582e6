"""How the base model learned: the scores of its heads, its matrices and one text, snapshot by snapshot."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model import arrays, weights
from model.data.shards import Shards
from model.data.vocabulary import Vocabulary
from model.inspect import ablation, circuits, heads, spectra
from model.inspect.figures import Learning
from model.inspect.pieces import pieces_of
from model.inspect.walk import compiled
from model.llama import Llama
from model.training.records import SNAPSHOTS
from model.training.snapshots import taken

ROWS, WIDTH = 16, 256  # of each text that heads are scored on; tokens of a row at most
FIXED = 96  # tokens of the text that is shown over the training
COUNTED = 5_000_000  # tokens of the training text whose frequencies are counted
ABLATIONS = 2e13  # FLOPs that all of them may take together: minutes on a processor
SMALLEST = 1e-12  # root mean square of a matrix, at which a change is not divided by it
ROUNDING = 0.005  # of a matrix: what bfloat16's 8 bits leave of the difference of two equal ones is 0.0016 at most


def learning(model: Llama, vocabulary: Vocabulary, tokens: Path, training: Path) -> Learning:
    """Every snapshot of the pretraining in the folder `training`, or the finished `model` alone where it kept none, on
    held-out text of the folder `tokens`."""
    probe, damaged = _probe(model, tokens), list[int]()
    scores = compiled(heads.score)
    fixed_T = probe.text_BT[0, :FIXED]
    looks: dict[str, list[Any]] = {name: [] for name in (*heads.HeadScores._fields, "copying")}
    ranks: dict[str, dict[str, list[Any]]] = {"stable": {}, "effective": {}}
    steps: list[int] = []
    seen, ratios = [], dict[str, list[float | None]]()
    before: dict[str, np.ndarray] = {}
    for step, current in _weights(model, training, damaged):
        seen.append(jax.tree.map(np.asarray, scores(current, probe)))
        for name, value in seen[-1].scores._asdict().items():
            looks[name].append(value.tolist())
        looks["copying"].append(circuits.copying(current).tolist())
        matrices = {name: np.asarray(kernel) for name, kernel in spectra.matrices(current)}
        for name, kernel in matrices.items():
            values = spectra.singular_values(kernel)
            ranks["stable"].setdefault(name, []).append(spectra.stable_rank(values).tolist())
            ranks["effective"].setdefault(name, []).append(spectra.effective_rank(values).tolist())
            change = _root(kernel - before[name]) / _root(kernel) if before else 0.0
            ratios.setdefault(name, []).append(change / (step - steps[-1]) if change > ROUNDING else None)
        before = matrices
        steps.append(step)
    chance = heads.chance(probe) | {"copying": 0.0}
    ablated_BT = probe.text_BT[: _affordable_rows(model, probe.text_BT.shape[1])]
    tenth = max(1, probe.text_BT.shape[1] // 10)
    return Learning(
        steps=steps,
        kept=len(taken(training)) > len(damaged),
        damaged=damaged,
        scores=looks,
        chance=chance,
        ablation=ablation.ablations(model, ablated_BT).tolist(),
        ablated_tokens=ablated_BT.size,
        emergence={
            name: _emergence(values, steps, chance[name]) for name, values in looks.items() if name != "entropy"
        },
        losses=[float(one.losses.mean()) for one in seen],
        first_losses=[float(one.first_losses) for one in seen],
        second_losses=[float(one.second_losses) for one in seen],
        late_less_early=[
            float(one.losses[:, -tenth:].mean() - one.losses[:, tenth : 2 * tenth].mean()) for one in seen
        ],
        norms=[one.norms.tolist() for one in seen],
        stable_rank=ranks["stable"],
        effective_rank=ranks["effective"],
        update_ratio=ratios,
        full_rank={name: min(kernel.shape[1:]) for name, kernel in before.items()},
        pieces=pieces_of(vocabulary, fixed_T.tolist()),
        size=len(vocabulary.tokenizer.decode(fixed_T[1:].tolist(), skip_special_tokens=False).encode()),
        bits=[(one.losses[0, : len(fixed_T) - 1] / np.log(2)).tolist() for one in seen],
    )


def _probe(model: Llama, tokens: Path) -> heads.Probe:
    width = min(WIDTH, model.config.max_position_embeddings) // 2 * 2
    counted = Shards(tokens / "train" if (tokens / "train").is_dir() else tokens / "heldout")
    ids = counted.read(0, min(COUNTED, len(counted)))[0]
    return heads.probe(
        rows(Shards(tokens / "heldout"), width, ROWS), np.bincount(ids, minlength=model.config.vocab_size), ROWS
    )


def _weights(model: Llama, training: Path, damaged: list[int]) -> Iterator[tuple[int, Llama]]:
    """Each snapshot with its step, or `model` where there is none; the steps of those that cannot be read are added to
    `damaged`."""
    steps = taken(training)
    for step in steps:
        try:
            yield step, weights.load(training / SNAPSHOTS / str(step))
        except arrays.Corrupt:
            damaged.append(step)
    if len(damaged) == len(steps):
        yield 0, model


def _affordable_rows(model: Llama, width: int) -> int:
    """Rows of a text that every head can be ablated on; at least one."""
    forwards = model.config.num_hidden_layers * model.config.num_attention_heads
    return max(1, int(ABLATIONS / (forwards * 2 * model.config.parameters * width)))


def _root(kernel: np.ndarray) -> float:
    return max(float(np.sqrt(np.mean(np.square(kernel, dtype=np.float64)))), SMALLEST)


def _emergence(values: list[Any], steps: list[int], chance: float) -> list[list[int]]:
    """The first step with half of the last value, both above chance; −1 where the last value is not above it."""
    above_SLH = np.array(values) - chance
    reached_SLH = above_SLH >= above_SLH[-1] / 2
    first_LH = np.array(steps)[reached_SLH.argmax(0)]
    return np.where(above_SLH[-1] > 0, first_LH, -1).tolist()


def rows(shards: Shards, width: int, most: int) -> jax.Array:
    """The first rows of a text, `[rows, time]`; fewer or shorter ones where there is not so much."""
    width = min(width, len(shards))
    count = max(1, min(most, len(shards) // width))
    return jnp.asarray(shards.read(0, count * width)[0].reshape(count, width))
