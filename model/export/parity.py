"""Does an export say what the JAX model says? Each is opened in its own runtime and compared."""

from pathlib import Path
from typing import Any

import numpy as np

from model.data.encoder import HARD
from model.data.shards import Shards
from model.errors import KodaError
from model.export.runtimes import HuggingFace, Jax, LlamaCpp, Mlx, Runtime, answer
from model.sampling import Sampling

TEXTS = 4  # pieces of held-out text


def opened(kind: str, path: Path, context: int) -> Runtime:
    """A file or folder of this kind (hf, gguf, mlx) in its own runtime."""
    if kind == "gguf":
        return LlamaCpp(path, context)
    return HuggingFace(path) if kind == "hf" else Mlx(path)


def compare(
    kind: str, path: str, weights: str, tokenizer: str, heldout: str, old_context: int, limit: float
) -> dict[str, Any]:
    """Compare one export with the JAX model on held-out text; `limit` bounds the mean KL divergence, in nats.

    Raises KodaError where it disagrees, naming the file and by how much.
    """
    reference = Jax(Path(weights), Path(tokenizer))
    context = reference.model.config.max_position_embeddings
    runtime = opened(kind, Path(path), context)
    shards = Shards(Path(heldout))
    differences, divergences, agreed = [], [], []
    for text in range(TEXTS):
        start = text * max(1, (len(shards) - context) // TEXTS)
        ids = shards.read(start, min(context, len(shards) - start))[0].tolist()
        for length in {8, old_context // 2, min(old_context + 8, context - 1), context - 1}:
            expected, found = reference.logprobs(ids[:length]), runtime.logprobs(ids[:length])
            if expected.shape != found.shape:
                raise KodaError(f"{path}: {found.size} logits, the JAX model has {expected.size}.")
            differences.append(float(np.abs(expected - found).max()))
            divergences.append(divergence(expected, found))
            agreed.append(int(expected.argmax()) == int(found.argmax()))
    figures = {
        "max_logprob_difference": max(differences),
        "kl_divergence": float(np.mean(divergences)),
        "same_top_token": float(np.mean(agreed)),
        "longest_prefix": context - 1,
        "hard_strings": len(HARD),
        "limit": limit,
    }
    if not figures["kl_divergence"] <= limit:
        raise KodaError(
            f"{path} disagrees with the JAX model: KL divergence {figures['kl_divergence']:.2e} nats over "
            f"{len(divergences)} positions, the limit is {limit:.2e}."
        )
    for string in HARD:
        if (found_ids := runtime.tokenize(string)) != (expected_ids := reference.tokenize(string)):
            raise KodaError(
                f"{path} splits {string!r} into {found_ids[:20]}…, the tokenizer into {expected_ids[:20]}…."
            )
    question, greedy = [{"role": "user", "content": "What does `os.path.join` do?"}], Sampling(limit=context // 2)
    said, expected_answer = answer(runtime, question, greedy), answer(reference, question, greedy)
    return {**figures, "answer": said.text, "stopped": said.stopped, "same_answer": said == expected_answer}


def divergence(expected: np.ndarray, found: np.ndarray) -> float:
    """KL divergence of two distributions given as log-probabilities, in nats; in float64, and so never negative."""
    p, q = (logs.astype(np.float64) - np.logaddexp.reduce(logs.astype(np.float64)) for logs in (expected, found))
    return float((np.exp(p) * (p - q)).sum())
