"""Does an export compute what the JAX model computes? Each is opened in its own runtime and compared.

Letters in names: N beginnings of a text, P positions in it, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from model import weights
from model.data import chat
from model.data.encoder import HARD
from model.data.shards import Shards
from model.export.differences import first_difference
from model.export.formats import FORMATS
from model.export.runtime import Answer, Jax, Probe, Runtime, answer
from model.figures import ParityFigures
from model.sampling import Sampling

TEXTS = 4  # pieces of held-out text
SCORED = 32  # tokens at the end of each of them whose probabilities make the perplexity
# Tokens that are compared at most, as the logits of longer texts fill the memory; and where the context was extended,
# which is to be seen beyond the old one.
USUAL, EXTENDED = 512, 2048
ANSWER = 128  # tokens of an answer
GREEDY = 64  # tokens that are generated greedily
TALKS: tuple[list[chat.Message], ...] = (
    [{"role": "user", "content": "What does `os.path.join` do?"}],
    [
        {"role": "system", "content": "Be brief.\n"},
        {"role": "user", "content": "  Two lines:\n\n1 < 2 & 'three' — ¿é? 👍"},
        {"role": "assistant", "content": "Yes.  "},
        {"role": "user", "content": "{{ braces }} and {% percent %}"},
    ],
)


class Limits(NamedTuple):
    """What an export may differ by."""

    kl: float  # mean KL divergence from the JAX model, nats
    perplexity: float  # ratio of the perplexities, whichever is the larger


class Part(NamedTuple):
    """A piece of held-out text, and the JAX model's log-probabilities on it."""

    ids: list[int]
    after: list[int]  # so many tokens, the next one is predicted
    of: list[int]  # positions of tokens that every runtime can score
    probe: Probe


class Expected(NamedTuple):
    """What every export should compute: what the JAX model, opened like any runtime, computes."""

    weights: Path
    model: Jax
    context: int
    old_context: int
    parts: list[Part]
    beginning: list[int]  # what the greedy tokens follow
    greedy: list[int]
    answer: Answer


def compare(
    format_: str,
    folder: str,
    limits: dict[str, Sequence[float]],
    weights_folder: str,
    tokenizer: str,
    heldout: str,
    old_context: int,
) -> dict[str, ParityFigures]:
    """Compare exports of one format with the JAX model on held-out text: figures for each path below `folder`.

    `limits` gives each path its Limits.
    """
    with jax.default_matmul_precision("highest"):  # a GPU would multiply float32 in TF32, with 11 bits, as F16 has
        expected = expectation(Path(weights_folder), Path(tokenizer), Path(heldout), old_context)
    return {path: judge(format_, Path(folder) / path, Limits(*limit), expected) for path, limit in limits.items()}


def judge(format_: str, path: Path, limits: Limits, expected: Expected) -> ParityFigures:
    """The figures of one export. `failed` has what is wrong with it, a sentence each."""
    try:
        figures = _figures(FORMATS[format_].open(path, expected.context), expected, limits)
    except Exception as error:  # whatever a runtime raises, this file is no good and the others are still looked at
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        figures = ParityFigures(failed=[f"its runtime does not load it: {line}"])
    if figures.failed:
        difference = first_difference(format_, path, weights.read(expected.weights))
        figures = replace(figures, first_difference=difference)
    return figures


def expectation(weights_folder: Path, tokenizer: Path, heldout: Path, old_context: int) -> Expected:
    """The JAX model on the held-out text, up to the end of its context and around that of the old one."""
    whole = weights.config(weights_folder).max_position_embeddings
    longest = EXTENDED if whole > old_context else USUAL
    model, shards = Jax(weights_folder, tokenizer, longest), Shards(heldout)
    context, old_context = model.context, min(old_context, model.context)
    lengths = {8, old_context // 2, old_context - 1, old_context + 8, (old_context + context) // 2, context - 1}
    parts = []
    for text in range(TEXTS):
        start = text * max(1, (len(shards) - context) // TEXTS)
        ids = shards.read(start, min(context, len(shards) - start))[0].tolist()
        after = [n for n in sorted(lengths) if 0 < n < len(ids)]
        of = [at for at in range(max(1, len(ids) - SCORED), len(ids)) if _whole(model, ids[at])]
        parts.append(Part(ids, after, of, model.probe(ids, after, of)))
    beginning = parts[0].ids[: max(1, context - GREEDY)]
    reply = answer(model, TALKS[0], Sampling(limit=min(ANSWER, context // 2)))
    greedy = model.greedy(beginning, GREEDY)
    return Expected(weights_folder, model, context, old_context, parts, beginning, greedy, reply)


def _whole(model: Jax, token: int) -> bool:
    """llama.cpp's server reports nothing for a token that ends the text or is part of a letter."""
    vocabulary = model.vocabulary
    return token not in vocabulary.stops and "\ufffd" not in vocabulary.tokenizer.decode([token])


def _figures(runtime: Runtime, expected: Expected, limits: Limits) -> ParityFigures:
    differences: list[float] = []
    near: list[float] = []
    far: list[float] = []
    losses: list[float] = []
    for part in expected.parts:
        probe = runtime.probe(part.ids, part.after, part.of)
        if part.probe.next_NV.shape != probe.next_NV.shape:
            sizes = [one.next_NV.shape[-1] for one in (probe, part.probe)]
            return ParityFigures(failed=[f"it gives {sizes[0]} logits, the JAX model {sizes[1]}"])
        differences.append(float(np.abs(part.probe.next_NV - probe.next_NV).max()))
        losses += (part.probe.chosen_P - probe.chosen_P).tolist()
        for length, ours_V, theirs_V in zip(part.after, part.probe.next_NV, probe.next_NV, strict=True):
            (far if length > expected.old_context else near).append(divergence(ours_V, theirs_V))
    tokens = runtime.greedy(expected.beginning, GREEDY)
    same = next((n for n, (a, b) in enumerate(zip(tokens, expected.greedy, strict=False)) if a != b), len(tokens))
    reply = answer(runtime, TALKS[0], Sampling(limit=min(ANSWER, expected.context // 2)))
    figures = ParityFigures(
        failed=[],
        max_logprob_difference=max(differences),
        kl_divergence=float(np.mean(near + far)),
        kl_divergence_beyond=float(np.mean(far)) if far else None,
        perplexity_ratio=float(np.exp(np.mean(losses))),
        kl_limit=limits.kl,
        perplexity_limit=limits.perplexity,
        greedy_equal=GREEDY if tokens == expected.greedy else same,  # a text that both end is the same to its end
        longest_prefix=max(length for part in expected.parts for length in part.after),
        hard_strings=len(HARD),
        answer=reply.text,
        stopped=reply.stopped,
        same_answer=reply == expected.answer,
    )
    return replace(figures, failed=list(_failures(figures, limits, runtime, expected.model)))


def _failures(figures: ParityFigures, limits: Limits, runtime: Runtime, model: Jax) -> Iterator[str]:
    if not figures.kl_divergence <= limits.kl:
        yield f"its KL divergence is {figures.kl_divergence:.2e} nats, the limit {limits.kl:.2e}"
    if not abs(math.log(figures.perplexity_ratio)) <= math.log(limits.perplexity):
        yield f"its perplexity is {figures.perplexity_ratio:.4f} times the model's, the limit {limits.perplexity}"
    for string in HARD:
        if (ids := runtime.tokenize(string)) != (right := model.tokenize(string)):
            yield f"it splits {string!r} into {ids[:20]}…, the tokenizer into {right[:20]}…"
            break
    bos = model.vocabulary.text_of(model.vocabulary.special.bos)
    for talk in TALKS:
        # llama.cpp's server leaves out what it adds to every prompt itself.
        text, expected = (prompt.removeprefix(bos) for prompt in (runtime.prompt(talk), model.prompt(talk)))
        if text != expected:
            yield f"its chat template makes {text!r} of a conversation, Koda's {expected!r}"
            break
    stops, letter = set(model.vocabulary.stops), model.tokenize("a")[-1]
    if (ends := runtime.ends({*stops, letter})) != stops:
        yield f"tokens {sorted(ends)} end its answers, and not {sorted(stops)}"


def divergence(expected: np.ndarray, actual: np.ndarray) -> float:
    """KL divergence of two distributions as log-probabilities, in nats; in float64, and so never negative."""
    p, q = (logs.astype(np.float64) - np.logaddexp.reduce(logs.astype(np.float64)) for logs in (expected, actual))
    return float((np.exp(p) * (p - q)).sum())
