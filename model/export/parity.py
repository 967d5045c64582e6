"""Does an export compute what the JAX model computes? Each is opened in its own runtime and compared.

Letters in names: V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from model.data import chat
from model.data.encoder import HARD
from model.data.vocabulary import Vocabulary
from model.export.differences import first_difference
from model.export.expectation import ANSWER, GREEDY, QUESTION, Expected
from model.export.formats import FORMATS
from model.export.runtime import Runtime, answer
from model.figures import ParityFigures
from model.sampling import Sampling

TALKS: tuple[list[chat.Message], ...] = (
    QUESTION,
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


def compare(format_: str, folder: str, limits: dict[str, Sequence[float]], expected: str) -> dict[str, ParityFigures]:
    """Compare exports of one format with what is `expected` (a folder that `expectation.compute` wrote): figures for
    each path below `folder`. `limits` gives each path its Limits.
    """
    right = Expected.read(Path(expected))
    return {path: judge(format_, Path(folder) / path, Limits(*limit), right) for path, limit in limits.items()}


def judge(format_: str, path: Path, limits: Limits, expected: Expected) -> ParityFigures:
    """The figures of one export. `failed` has what is wrong with it, a sentence each."""
    try:
        figures = _figures(FORMATS[format_].open(path, expected.context), expected, limits)
    except Exception as error:  # whatever a runtime raises, this file is no good and the others are still looked at
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        figures = ParityFigures(failed=[f"its runtime does not load it: {line}"])
    if figures.failed:
        from model import weights  # here, because it imports JAX, which an export that agrees needs none of

        difference = first_difference(format_, path, weights.read(expected.weights))
        figures = replace(figures, first_difference=difference)
    return figures


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
    reply = answer(runtime, QUESTION, Sampling(limit=min(ANSWER, expected.context // 2)))
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
    return replace(figures, failed=list(_failures(figures, limits, runtime, expected.vocabulary)))


def _failures(figures: ParityFigures, limits: Limits, runtime: Runtime, vocabulary: Vocabulary) -> Iterator[str]:
    if not figures.kl_divergence <= limits.kl:
        yield f"its KL divergence is {figures.kl_divergence:.2e} nats, the limit {limits.kl:.2e}"
    if not abs(math.log(figures.perplexity_ratio)) <= math.log(limits.perplexity):
        yield f"its perplexity is {figures.perplexity_ratio:.4f} times the model's, the limit {limits.perplexity}"
    for string in HARD:
        if (ids := runtime.tokenize(string)) != (right := vocabulary.plain(string)):
            yield f"it splits {string!r} into {ids[:20]}…, the tokenizer into {right[:20]}…"
            break
    bos = vocabulary.text_of(vocabulary.special.bos)
    for talk in TALKS:
        # llama.cpp's server leaves out what it adds to every prompt itself.
        text, expected = (prompt.removeprefix(bos) for prompt in (runtime.prompt(talk), chat.prompt(vocabulary, talk)))
        if text != expected:
            yield f"its chat template makes {text!r} of a conversation, Koda's {expected!r}"
            break
    stops, letter = set(vocabulary.stops), vocabulary.plain("a")[-1]
    if (ends := runtime.ends({*stops, letter})) != stops:
        yield f"tokens {sorted(ends)} end its answers, and not {sorted(stops)}"


def divergence(expected: np.ndarray, actual: np.ndarray) -> float:
    """KL divergence of two distributions as log-probabilities, in nats; in float64, and so never negative."""
    p, q = (logs.astype(np.float64) - np.logaddexp.reduce(logs.astype(np.float64)) for logs in (expected, actual))
    return float((np.exp(p) * (p - q)).sum())
