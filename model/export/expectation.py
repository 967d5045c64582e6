"""What every export of a model should compute: what Koda's JAX model computes, opened like any runtime.

Computed once, it is written down, and each format is compared with it in a process that needs no JAX.

Letters in names: N beginnings of a text, P positions in it, V vocabulary.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from model.data import chat
from model.data import tokenizer as tokenizers
from model.data.shards import Shards
from model.data.vocabulary import Vocabulary
from model.export.runtime import Answer, Jax, Probe, answer
from model.files import read_json, write_json
from model.sampling import Sampling

TEXTS = 4  # pieces of held-out text
SCORED = 32  # tokens at the end of each of them whose probabilities make the perplexity
# Tokens that are compared at most, as the logits of longer texts fill the memory; and where the context was extended,
# which is to be seen beyond the old one.
USUAL, EXTENDED = 512, 2048
ANSWER = 128  # tokens of an answer
GREEDY = 64  # tokens that are generated greedily
QUESTION: list[chat.Message] = [{"role": "user", "content": "What does `os.path.join` do?"}]


class Part(NamedTuple):
    """A piece of held-out text, and the JAX model's log-probabilities on it."""

    ids: list[int]
    after: list[int]  # so many tokens, the next one is predicted
    of: list[int]  # positions of tokens that every runtime can score
    probe: Probe


class Expected(NamedTuple):
    """What every export should compute."""

    weights: Path
    tokenizer: Path
    vocabulary: Vocabulary  # that of the tokenizer
    context: int  # tokens that are compared at most
    old_context: int
    parts: list[Part]
    beginning: list[int]  # what the greedy tokens follow
    greedy: list[int]
    answer: Answer  # to QUESTION

    def write(self, folder: Path) -> None:
        """Write it into `folder`, to be read back by `read`."""
        arrays = {
            f"{number}.{name}": array
            for number, part in enumerate(self.parts)
            for name, array in part.probe._asdict().items()
        }
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "parts.npz", **arrays)
        plain = {**self._asdict(), "weights": str(self.weights), "tokenizer": str(self.tokenizer)}
        del plain["vocabulary"]
        write_json(folder / "expected.json", {**plain, "parts": [part[:3] for part in self.parts]})

    @staticmethod
    def read(folder: Path) -> "Expected":
        plain = read_json(folder / "expected.json")
        with np.load(folder / "parts.npz") as arrays:
            plain["parts"] = [
                Part(ids, after, of, Probe(*(arrays[f"{number}.{name}"] for name in Probe._fields)))
                for number, (ids, after, of) in enumerate(plain["parts"])
            ]
        plain |= {name: Path(plain[name]) for name in ("weights", "tokenizer")}
        vocabulary = tokenizers.load(str(plain["tokenizer"]))
        return Expected(**{**plain, "vocabulary": vocabulary, "answer": Answer(*plain["answer"])})


def compute(weights: str, tokenizer: str, heldout: str, old_context: int, out: str) -> int:
    """Write to `out` what the exports of these weights should compute; returns how many tokens are compared at most."""
    import jax  # here, because whoever reads what was written needs none

    with jax.default_matmul_precision("highest"):  # a GPU would multiply float32 in TF32, with 11 bits, as F16 has
        expected = expectation(Path(weights), Path(tokenizer), Path(heldout), old_context)
    expected.write(Path(out))
    return expected.context


def expectation(weights: Path, tokenizer: Path, heldout: Path, old_context: int) -> Expected:
    """The JAX model on the held-out text, up to the end of its context and around that of the old one."""
    from model.weights import config

    longest = EXTENDED if config(weights).max_position_embeddings > old_context else USUAL
    model, shards = Jax.load(weights, tokenizer, longest), Shards(heldout)
    context, old_context = model.context, min(old_context, model.context)
    lengths = {8, old_context // 2, old_context - 1, old_context + 8, (old_context + context) // 2, context - 1}
    parts = []
    for text in range(TEXTS):
        start = text * max(1, (len(shards) - context) // TEXTS)
        ids = shards.read(start, min(context, len(shards) - start))[0].tolist()
        after = [n for n in sorted(lengths) if 0 < n < len(ids)]
        of = list(_comparable(model.vocabulary, ids))
        parts.append(Part(ids, after, of, model.probe(ids, after, of)))
    beginning = parts[0].ids[: max(1, context - GREEDY)]
    reply = answer(model, QUESTION, Sampling(limit=min(ANSWER, context // 2)))
    greedy = model.greedy(beginning, GREEDY)
    return Expected(weights, tokenizer, model.vocabulary, context, old_context, parts, beginning, greedy, reply)


def _comparable(vocabulary: Vocabulary, ids: list[int]) -> Iterator[int]:
    """Positions at the end of a text, but for tokens that end one or are part of a letter: llama.cpp's server reports
    nothing for those."""
    for at in range(max(1, len(ids) - SCORED), len(ids)):
        if ids[at] not in vocabulary.stops and "\ufffd" not in vocabulary.tokenizer.decode([ids[at]]):
            yield at
