"""Five things to look at in a run, chosen from its figures by rules, in sentences that are true of it."""

from collections import Counter

import numpy as np

from model.inspect.figures import Inspection, Learning
from tasks.reports.inspect_guide import SCORES

CLEAR = 0.1  # above chance, from where on a head is said to do something


def guided_path(seen: Inspection) -> list[tuple[str, str]]:
    """A sentence or two each, and the mark of the part of the page that shows it."""
    return [
        _head(seen.learning, "induction", "attends to what followed the earlier occurrence of the current token"),
        _head(seen.learning, "previous", "attends to the token before"),
        _needed(seen.learning),
        _settling(seen),
        _copied(seen) or _learned_most(seen.learning),
    ]


def _head(learning: Learning, score: str, does: str) -> tuple[str, str]:
    """The clearest head of a score, and when it appeared."""
    last, chance = np.array(learning.scores[score][-1]), learning.chance[score]
    layer, head = map(int, np.unravel_index(last.argmax(), last.shape))
    value = last[layer, head]
    if value - chance < CLEAR:
        best = f"the best is {layer}.{head} with {value:.3f} of its attention, and chance gives {chance:.3f}"
        return f"No head {does}: {best}.", "learned"
    text = f"Head {layer}.{head} {does}, with {value:.2f} of its attention (chance {chance:.3f})."
    step = learning.emergence[score][layer][head]
    if learning.kept:
        text += f" Half of what is above chance was there in the snapshot of step {step:,}."
    return text, "learned"


def _needed(learning: Learning) -> tuple[str, str]:
    """The head that the loss needs most, and its own clearest score."""
    saved = np.array(learning.ablation)
    layer, head = map(int, np.unravel_index(saved.argmax(), saved.shape))
    own = {
        name: learning.scores[name][-1][layer][head] - learning.chance[name]
        for name in ("induction", "previous", "duplicate", "sink")
    }
    best = max(own, key=lambda name: own[name])
    does = f"; of the patterns that are measured it shows `{SCORES[best]}` most" if own[best] > CLEAR else ""
    return (
        f"Without head {layer}.{head} the loss rises by {saved[layer, head]:.3f} nats, the most of all heads{does}.",
        "ablation",
    )


def _settling(seen: Inspection) -> tuple[str, str]:
    layer, count = Counter(seen.text.settles).most_common(1)[0]
    where = "in the embedding, before any layer" if layer == 0 else f"in layer {layer - 1}"
    return (
        f"Most often the next token is settled {where}: for {count} of the text's {len(seen.text.settles)} positions.",
        "lens",
    )


def _copied(seen: Inspection) -> tuple[str, str] | None:
    """The longest run that an answer shares with the training text."""
    sources = [source for answer in seen.origins.answers for source in answer.sources] if seen.origins else []
    if not sources:
        return None
    longest = max(sources, key=lambda source: source.length)
    run = f"{longest.length} tokens, from {longest.name}: “{' '.join(longest.words.split())}”"
    return f"The longest run that an answer shares with the training text is {run}.", "origins"


def _learned_most(learning: Learning) -> tuple[str, str]:
    """Between which two snapshots the loss fell most."""
    falls = [before - after for before, after in zip(learning.losses[:-1], learning.losses[1:], strict=True)]
    if not falls:
        return f"The loss on held-out text is {learning.losses[-1]:.3f} nats per token.", "learned"
    most = int(np.argmax(falls))
    a, b = learning.steps[most], learning.steps[most + 1]
    return f"The loss fell most between the snapshots of steps {a:,} and {b:,}: by {falls[most]:.2f} nats.", "learned"
