"""Evaluation of a model: bits per byte beside xz, and the suites of zero-shot tasks."""

import lzma
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, groupby
from pathlib import Path
from typing import Literal

import numpy as np

from model.data.document import Document
from model.data.prepare import heldout_documents
from model.data.vocabulary import encode_plain
from model.errors import KodaError
from model.evaluation import homemade, standard
from model.evaluation.baselines import Unigram, baselines
from model.evaluation.figures import Marked, mark
from model.evaluation.items import Item, requests
from model.evaluation.score import Scorer
from model.evaluation.subject import Subject, open_model
from model.figures import EvaluateFigures, Measurement, Sample, SuiteFigures
from model.files import read_json, write_json
from model.generate import Generator
from model.sampling import Sampling

Suite = Literal["standard", "homemade"]
HOMEMADE = 200  # items of a home-made task by default


def evaluate(
    model: str, base: str, tokens: str, out: str, items: int, max_bytes: int, standard_items: str, limit: int
) -> EvaluateFigures:
    """Evaluate the weights in `model`, and for bits per byte also those in `base`.

    right.json below `out` has which items were right, so that two models can be compared item by item.
    """
    folder = Path(tokens)
    documents = heldout_documents(folder)
    text = _up_to(documents, max_bytes)
    before = bits_per_byte(*_opened(base, folder), text)
    subject, scorer = _opened(model, folder)
    measured = _measure(subject, scorer, documents, text, Unigram(folder), items, standard_items, limit)
    write_json(Path(out) / "right.json", measured.right)
    whole = "".join(document.text for document in text).encode()
    xz = 8 * len(lzma.compress(whole, preset=9)) / len(whole)
    figures = measured.figures
    return EvaluateFigures(
        bits_per_byte=round(_total(before), 4),
        tasks=figures.tasks,
        standard=figures.standard,
        bits_per_byte_final=figures.bits_per_byte,
        bits_per_byte_by_source=_by_source(folder, before),
        xz_bits_per_byte=round(xz, 4),
        ratio_to_xz=round(_total(before) / xz, 4),
        heldout_bytes=len(whole),
        tasks_above_chance=sum(task.above_chance for task in figures.tasks.values()),
        samples=samples(subject),
    )


def measure(
    model: str, tokens: str, items: int, max_bytes: int, standard_items: str = "", limit: int = 0
) -> Measurement:
    """One model's figures, and what another can be compared with it by (`regression.compare`).

    `standard_items` is where the standard suite is read from, at most `limit` items of each task; empty: left out.
    """
    folder = Path(tokens)
    documents = heldout_documents(folder)
    text = _up_to(documents, max_bytes)
    return _measure(*_opened(model, folder), documents, text, Unigram(folder), items, standard_items, limit)


def _measure(
    subject: Subject,
    scorer: Scorer,
    documents: list[Document],
    text: list[Document],
    unigram: Unigram,
    items: int,
    standard_items: str,
    limit: int,
) -> Measurement:
    """`text` is what bits per byte are of, `documents` what the home-made items are made of."""
    needed = bits_per_byte(subject, scorer, text)
    made = homemade.items(documents, unigram, items)
    marked = {"homemade": score(subject, scorer, made)}
    if standard_items:
        marked["standard"] = score(subject, scorer, standard.items(standard.TASKS, standard_items, limit))
    figures = {suite: {name: one.figures for name, one in of.items()} for suite, of in marked.items()}
    with_baselines = {
        name: replace(one, **baselines(made[name], unigram))  # type: ignore[arg-type]
        for name, one in figures["homemade"].items()
    }
    return Measurement(
        SuiteFigures(
            bits_per_byte=round(_total(needed), 4), tasks=with_baselines, standard=figures.get("standard", {})
        ),
        {suite: {name: one.right for name, one in of.items()} for suite, of in marked.items()},
        needed.tolist(),
    )


def text_bits(models: list[str], tokens: str, max_bytes: int) -> list[float]:
    """Held-out bits per byte of each of `models`, weights or checkpoints, as `evaluate` measures them."""
    text = _up_to(heldout_documents(Path(tokens)), max_bytes)
    return [_total(bits_per_byte(*_opened(model, Path(tokens)), text)) for model in models]


def suite_items(suite: Suite, names: Sequence[str], data: str, limit: int) -> dict[str, list[Item]]:
    """The items of a suite, all its tasks where `names` is empty. `data` is a folder or `hub` for the standard one, and
    a run's folder `tokenize` for the home-made one. Raises KodaError for a task that is not in the suite, or that was
    named and has no file."""
    known = standard.TASKS if suite == "standard" else homemade.TASKS
    if unknown := [name for name in names if name not in known]:
        raise KodaError(f"--tasks {unknown[0]}: the {suite} suite has {', '.join(known)}.")
    if suite == "standard":
        for name in names:
            if data != "hub" and not (Path(data) / f"{name}.jsonl").is_file():
                raise KodaError(f"--tasks {name}: {data} has no {name}.jsonl.")
        return standard.items(names or known, data, limit)
    made = homemade.items(heldout_documents(Path(data)), Unigram(Path(data)), limit or HOMEMADE)
    return {name: made[name] for name in names or known}


def score(subject: Subject, scorer: Scorer, items: dict[str, list[Item]]) -> dict[str, Marked]:
    """Every task's figures; they count the items that were longer than the context."""
    tasks = {}
    for name, of_task in items.items():
        before = scorer.truncated
        marked = mark(of_task, scorer(requests(subject.encode, subject.prefix, of_task)))
        tasks[name] = marked._replace(figures=replace(marked.figures, truncated=scorer.truncated - before))
    return tasks


def bits_per_byte(subject: Subject, scorer: Scorer, documents: list[Document]) -> np.ndarray:
    """`[documents, 2]`: the bits that the model needs for each document and its end, and the bytes of its text."""
    vocabulary = subject.vocabulary
    beginning, end = vocabulary.special.beginning, vocabulary.end
    texts = encode_plain(vocabulary.tokenizer, [document.text for document in documents])
    encoded = [[*beginning, *ids, end] for ids in texts]
    flat = np.asarray([end, *(token for ids in encoded for token in ids)], np.int32)
    nats = -scorer.stream(flat, scorer.context).astype(np.float64)
    nats[np.isin(flat[1:], beginning)] = 0.0  # it says nothing: every text begins with it
    ends = list(accumulate(map(len, encoded)))
    needed = [nats[a:b].sum() / math.log(2) for a, b in zip([0, *ends], ends, strict=False)]
    return np.array([[bits, len(document.text.encode())] for bits, document in zip(needed, documents, strict=True)])


def _opened(model: str, tokens: Path) -> tuple[Subject, Scorer]:
    subject = open_model(Path(model), tokens / "tokenizer.json")
    return subject, Scorer(subject.model)


def _total(measured: np.ndarray) -> float:
    bits, size = measured.sum(axis=0)
    return float(bits / size)


def _by_source(tokens: Path, measured: np.ndarray) -> dict[str, float]:
    """Bits per byte of the documents of each source; nothing for a corpus that was made before sources were noted."""
    if not (tokens / "heldout/sources.json").is_file():
        return {}
    names = [name for name, count in read_json(tokens / "heldout/sources.json") for _ in range(count)]
    pairs = sorted(zip(names, measured.tolist(), strict=False))
    found = {name: np.array([row for _, row in group]) for name, group in groupby(pairs, key=lambda pair: pair[0])}
    return {name: round(_total(rows), 4) for name, rows in found.items()}


PROMPTS = ("Return", "The function", "In the year", "This module", "We")


def samples(subject: Subject) -> list[Sample]:
    """How the model goes on from fixed beginnings with fixed seeds, so that two runs can be read side by side."""
    generate, vocabulary = Generator(subject.model), subject.vocabulary
    answers = (
        list(generate(subject.encode([prompt])[0], vocabulary.stops, Sampling(limit=60, temperature=0.8, seed=seed)))
        for seed, prompt in enumerate(PROMPTS)
    )
    return [Sample(prompt, vocabulary.tokenizer.decode(ids)) for prompt, ids in zip(PROMPTS, answers, strict=True)]


def _up_to(documents: list[Document], limit: int) -> list[Document]:
    taken: list[Document] = []
    size = 0
    for document in documents:
        if taken and size + len(document.text.encode()) > limit:
            break
        taken.append(document)
        size += len(document.text.encode())
    return taken
