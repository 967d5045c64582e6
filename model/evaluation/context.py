"""What a model makes of a longer context, under each way to scale its positions.

Letters in names: B batch, T time, S time + 1: a row with its last target.
"""

from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import get_args

import numpy as np
from flax import nnx

from model import weights
from model.config import LlamaConfig
from model.data import tokenizer as tokenizers
from model.data.batches import Batches
from model.data.shards import Shards
from model.evaluation.endings import ending_share
from model.evaluation.passkey import passkeys
from model.evaluation.score import Scorer
from model.figures import ContextFigures, LossByContext
from model.files import write_json
from model.llama import Llama
from model.stretch import Method, stretched
from model.training.promote import promote

BINS = 16  # points of the curve over the longer context


def measure(
    source: str,
    final: str,
    out: str,
    tokens: str,
    prompts: str,
    factor: float,
    method: Method,
    job: str,
    rows: int,
    items: int,
    answer_limit: int,
) -> ContextFigures:
    """Compare the model in `source` under every scaling method, and the `final` model; returns the figures.

    `job` is the finished training (a file) whose verified checkpoint becomes the `final` weights; empty: nothing was
    trained, and they are there. Writes positions.json: the held-out loss by position of each, and how many pass keys
    the final model retrieves. The held-out `prompts` measure whether the final model still ends its answers.
    """
    if job:
        promote(job, final)
    old, new = weights.load(Path(source)), weights.load(Path(final))
    half, context = old.config.max_position_embeddings, new.config.max_position_embeddings
    models: dict[str, Llama] = {name: under(old, stretched(old.config, factor, name)) for name in get_args(Method)}
    if job:
        models[f"{method}, adapted"] = new
    heldout = Path(tokens) / "heldout"
    curves = {name: loss_by_position(model, heldout, context, rows) for name, model in models.items()}
    vocabulary = tokenizers.load(str(Path(tokens) / "tokenizer.json"))
    shards = Shards(heldout)
    retrieval = passkeys(Scorer(new), vocabulary, shards.read(0, len(shards))[0], items)
    edges = [context * number // BINS for number in range(BINS + 1)]
    write_json(
        Path(out) / "positions.json",
        {
            "old_context": half,
            "edges": edges,
            "curves": {name: [float(curve[a:b].mean()) for a, b in pairwise(edges)] for name, curve in curves.items()},
            "passkeys": retrieval,
        },
    )
    unchanged, last = curves["unchanged"], curves[f"{method}, adapted" if job else method]
    end = slice(3 * half // 4, half)  # the last quarter of the old context
    return ContextFigures(
        **asdict(ending_share(new, vocabulary, Path(prompts), answer_limit)),
        # Loss at the old lengths over that of the model before; loss beyond over that at the end of the old context.
        old_lengths_ratio=round(float(last[:half].mean() / unchanged[:half].mean()), 4),
        beyond_ratio=round(float(last[half:].mean() / last[end].mean()), 4),
        beyond_ratio_before=round(float(unchanged[half:].mean() / unchanged[end].mean()), 4),
        passkeys_found=round(float(np.mean([row["found"] for row in retrieval])), 3),
        loss_by_method={
            name: LossByContext(round(float(curve[:half].mean()), 4), round(float(curve[half:].mean()), 4))
            for name, curve in curves.items()
        },
    )


def under(model: Llama, config: LlamaConfig) -> Llama:
    """The same weights under another configuration of positions."""
    graph, state = weights.abstract(config, model.compute)
    return weights.build(graph, state, nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def loss_by_position(model: Llama, heldout: Path, context: int, rows: int) -> np.ndarray:
    """Mean held-out loss at each position of the context, `[context]`, nats."""
    batches = Batches(heldout, batch_size=1, sequence_length=context, seed=0)
    batch = batches.take(np.arange(min(rows, batches.rows)))
    tokens_BS = np.concatenate([batch.inputs_BT, batch.targets_BT[:, -1:]], axis=1)
    return -Scorer(model).rows(tokens_BS).mean(axis=0)
