"""Passkey retrieval (Mohtashami and Jaggi 2023, arXiv:2305.16300): from how far away a model retrieves a number.

A small model need not be able to write the number: it chooses among ten, so that chance is known.
"""

import numpy as np

from model.data.vocabulary import Vocabulary
from model.evaluation.score import Scorer

CHOICES = 10
LENGTHS = (0.25, 0.5, 0.75, 1.0)  # of the context
DEPTHS = (0.0, 0.5, 1.0)  # the number's position in the text; 1 is just before the question
STATEMENT = "\nThe pass key is{}. Remember it.{} is the pass key.\n"
QUESTION = "\nWhat is the pass key? The pass key is"


def passkeys(scorer: Scorer, vocabulary: Vocabulary, filler: np.ndarray, items: int) -> list[dict[str, float]]:
    """The share of keys that are retrieved for each length and depth, over `items` texts each.

    `filler` is the text, token ids, in which the keys are hidden.
    """
    draw, beginning = np.random.default_rng(0), vocabulary.special.beginning

    def ids(text: str) -> list[int]:
        return vocabulary.plain(text)

    rows = []
    for share in LENGTHS:
        for depth in DEPTHS:
            requests = []
            for _ in range(items):
                keys = [f" {key}" for key in draw.choice(90_000, CHOICES, replace=False) + 10_000]
                statement, question = ids(STATEMENT.format(keys[0], keys[0])), ids(QUESTION)
                answers = [ids(key) for key in keys]
                longest = max(map(len, answers))
                room = int(share * scorer.context) - len(beginning) - len(statement) - len(question) - longest
                start = int(draw.integers(0, max(1, len(filler) - room)))
                text = filler[start : start + max(0, room)].tolist()
                at = int(depth * len(text))
                requests += [(beginning + text[:at] + statement + text[at:] + question, answer) for answer in answers]
            logprobs = np.array([score.logprob for score in scorer(requests)]).reshape(items, CHOICES)
            right = float((logprobs.argmax(1) == 0).mean())
            rows.append({"length": int(share * scorer.context), "depth": depth, "found": round(right, 3)})
    return rows
