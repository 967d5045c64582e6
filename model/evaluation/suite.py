"""What a model is worth: bits per byte beside xz, and the home-made tasks."""

import lzma
import math
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from model import weights
from model.data import tokenizer as tokenizers
from model.data.document import Document
from model.data.prepare import heldout_documents
from model.evaluation import homemade
from model.evaluation.generate import Generator
from model.evaluation.score import Scorer
from model.sampling import Sampling


def evaluate(model: str, base: str, tokens: str, items: int, max_bytes: int) -> dict[str, Any]:
    """Evaluate the weights in `model`, and for bits per byte also those in `base`; returns the figures."""
    learned = tokenizers.load(str(Path(tokens) / "tokenizer.json"))
    documents = heldout_documents(Path(tokens))
    measured = _up_to(documents, max_bytes)
    text = b"".join(document.text.encode() for document in measured)
    xz = 8 * len(lzma.compress(text, preset=9)) / len(text)
    final, first = weights.load(Path(model)), weights.load(Path(base))
    scorer = Scorer(final)
    base_bits = bits_per_byte(Scorer(first), learned, measured)
    tasks = {name: task_figures(scorer, learned, made) for name, made in homemade.items(documents, items).items()}
    return {
        "bits_per_byte": round(base_bits, 4),
        "xz_bits_per_byte": round(xz, 4),
        "ratio_to_xz": round(base_bits / xz, 4),
        "bits_per_byte_final": round(bits_per_byte(scorer, learned, measured), 4),
        "heldout_bytes": len(text),
        "tasks_above_chance": sum(task["above_chance"] for task in tasks.values()),
        "tasks": tasks,
        "samples": samples(final, learned),
    }


def bits_per_byte(scorer: Scorer, tokenizer: Tokenizer, documents: list[Document]) -> float:
    """Bits that the model needs for the documents and their ends, over the bytes of their UTF-8 text."""
    end = tokenizers.end_of_text(tokenizer)
    ids = [end]
    for encoded in tokenizers.encode_plain(tokenizer, (document.text for document in documents)):
        ids += [*encoded, end]
    nats = -float(scorer.stream(np.asarray(ids, np.int32), scorer.context).sum(dtype=np.float64))
    return nats / math.log(2) / sum(len(document.text.encode()) for document in documents)


def task_figures(scorer: Scorer, tokenizer: Tokenizer, made: list[homemade.Item]) -> dict[str, Any]:
    """Accuracy over the items of one task, with its standard error and the level of chance.

    The likeliest continuation is the answer; an item with one choice counts where every token of it is the likeliest.
    """
    if not made:
        return {"n": 0, "acc": None, "stderr": None, "chance": None, "above_chance": False}
    requests = [
        (_ids(tokenizer, context), _ids(tokenizer, continuation))
        for item in made
        for context, continuation in zip(item.contexts, item.continuations, strict=True)
    ]
    scores = iter(scorer(requests))
    right = []
    for item in made:
        mine = [next(scores) for _ in item.contexts]
        if len(mine) == 1:
            right.append(mine[0].greedy)
        else:
            right.append(int(np.argmax([score.logprob for score in mine])) == item.gold)
    accuracy, chance = float(np.mean(right)), float(np.mean([item.chance for item in made]))
    stderr = math.sqrt(max(accuracy * (1 - accuracy), chance * (1 - chance)) / len(made))
    return {
        "n": len(made),
        "acc": round(accuracy, 4),
        "stderr": round(stderr, 4),
        "chance": round(chance, 4),
        "above_chance": accuracy - chance > 2 * stderr,
    }


PROMPTS = ("Return", "The function", "In the year", "This module", "We")


def samples(model: weights.Llama, tokenizer: Tokenizer) -> list[dict[str, str]]:
    """What the model makes of fixed beginnings with fixed seeds, so that two runs can be read side by side."""
    generate, stop = Generator(model), tokenizers.end_of_text(tokenizer)
    return [
        {
            "prompt": prompt,
            "text": tokenizer.decode(
                list(generate(_ids(tokenizer, prompt), stop, Sampling(limit=60, temperature=0.8, seed=seed)))
            ),
        }
        for seed, prompt in enumerate(PROMPTS)
    ]


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizers.encode_plain(tokenizer, [text])[0]


def _up_to(documents: list[Document], limit: int) -> list[Document]:
    taken: list[Document] = []
    size = 0
    for document in documents:
        if taken and size + len(document.text.encode()) > limit:
            break
        taken.append(document)
        size += len(document.text.encode())
    return taken
