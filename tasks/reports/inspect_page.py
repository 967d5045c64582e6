"""The page of `koda inspect`: one file that needs no network, for light and dark, for a desk and a phone."""

import collections
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from model.inspect.figures import Answer, Finetuning, Inspection, Learning, Origins, Stretching, Text
from tasks.reports import html, inspect_plots
from tasks.reports.inspect_guide import GUIDE, SCORES
from tasks.reports.inspect_path import guided_path

COLUMNS = 64  # tokens of the lens' table at most
SHOWN_PARTS = 16  # parts of a logit in the picture
TEXTS = 5  # snapshots whose text is shown
NO_SNAPSHOTS = (
    "This run has no snapshots: the finished weights alone are shown. `pretrain.snapshots = 24`, the default, keeps "
    "them in a run that is trained here."
)


def page(path: Path, name: str, seen: Inspection) -> Path:
    """Write the page of what was measured of the run `name`."""
    parts = [
        f"<h1>Inside {html.escaped(name)}</h1>",
        html.note(
            f"{seen.parameters:,} parameters: {seen.layers} layers of {seen.heads} heads ({seen.kv_heads} of keys and "
            f"values), {seen.context:,} tokens of context. Heads are named layer.head, both from 0."
        ),
        html.heading("Five things to look at"),
        html.links(guided_path(seen)),
        *_learning(seen.learning),
        *_text(seen.text),
        *(_finetuning(seen.finetuning) if seen.finetuning else []),
        *(_stretching(seen.stretching) if seen.stretching else []),
        *(_origins(seen.origins) if seen.origins else []),
        html.note(
            "Measured in "
            + ", ".join(f"{seconds:.1f} s ({part})" for part, seconds in seen.seconds.items())
            + ". inspect.json beside this page has every number."
        ),
    ]
    return html.write(path, f"Inside {name}", parts)


def _explained(picture: str, name: str, more: str = "") -> str:
    """A picture with what it shows."""
    guide = GUIDE[name]
    lines = [guide.equation, f"Look for: {guide.look}", guide.chance and f"To compare: {guide.chance}", more]
    return html.explained(picture, [line for line in lines if line], guide.code)


def _learning(learning: Learning) -> list[str]:
    maps = inspect_plots.scores(learning, [name for name in SCORES if name != "writes"])
    heads = len(learning.ablation) * len(learning.ablation[0])
    clearest = f"Of {heads} heads, each map shows the {inspect_plots.MOST} whose last score is farthest from chance."
    damaged = f"Snapshots that cannot be read are left out: steps {', '.join(map(str, learning.damaged))}."
    ablation = inspect_plots.grid(learning.ablation, "nats of loss without the head", "head", "layer")
    return [
        html.heading("How it learned", mark="learned"),
        "" if learning.kept else html.note(NO_SNAPSHOTS),
        html.note(damaged) if learning.damaged else "",
        _explained(maps, "course", clearest if learning.kept and heads > inspect_plots.MOST else ""),
        html.folded("Every head in numbers, at the end", _head_table(learning)),
        html.heading("What each head is worth", 3, mark="ablation"),
        _explained(ablation, "ablation", f"Over {learning.ablated_tokens:,} tokens of held-out text."),
        *_over_steps(learning),
    ]


def _over_steps(learning: Learning) -> list[str]:
    """Lines over the snapshots; of finished weights alone, their numbers."""
    steps, stable, effective = learning.steps, _means(learning.stable_rank), _means(learning.effective_rank)
    places = [*(f"before layer {n}" for n in range(len(learning.ablation))), "after the last"]
    norms = dict(zip(places, zip(*learning.norms, strict=True), strict=True))
    behaviour = {
        "random tokens": learning.first_losses,
        "their repetition": learning.second_losses,
        "late less early, held-out": learning.late_less_early,
    }
    tables: dict[str, Mapping[str, Sequence[float | None]]] = {
        "loss, nats": {"held-out": learning.losses, **behaviour},
        "root mean square of the stream": norms,
        "stable rank, mean over layers": stable,
        "effective rank, mean over layers": effective,
        "change a step, over the weights": learning.update_ratio,
    }
    numbers = ""
    for title, series in tables.items():
        rows = [[step, *(values[n] for values in series.values())] for n, step in enumerate(steps)]
        numbers += html.heading(title, 3) + html.table(["step", *series], rows)
    text = [html.heading("One text, as it became known", 3, mark="bits"), _explained(_texts(learning), "bits")]
    if not learning.kept:
        return [*text, html.heading("The stream and the matrices", 3), numbers]
    logarithms = np.log10(np.maximum(learning.norms, 1e-9)).T.tolist()
    largest = ", ".join(f"{name} {rank}" for name, rank in learning.full_rank.items())
    ranks = inspect_plots.over_steps(steps, stable, "stable rank", False)
    ranks += inspect_plots.over_steps(steps, effective, "effective rank", False)
    stream = inspect_plots.grid(
        logarithms, "log₁₀ of the root mean square", "step of the snapshot", "layers read", steps
    )
    return [
        html.heading("What looking back is worth", 3, mark="behaviour"),
        _explained(inspect_plots.over_steps(steps, behaviour, "nats", False), "behaviour"),
        *text,
        html.heading("The stream and the matrices", 3, mark="matrices"),
        _explained(stream, "norms"),
        _explained(ranks, "ranks", f"At most: {largest}."),
        _explained(inspect_plots.over_steps(steps, learning.update_ratio, "change a step", True), "updates")
        if any(ratio is not None for ratios in learning.update_ratio.values() for ratio in ratios)
        else "",
        html.folded("These pictures in numbers", numbers),
    ]


def _means(by_matrix: dict[str, list[list[float]]]) -> dict[str, list[float]]:
    """Over the layers, by matrix and snapshot."""
    return {name: np.mean(values, axis=1).tolist() for name, values in by_matrix.items()}


def _head_table(learning: Learning) -> str:
    rows = []
    for layer, row in enumerate(learning.ablation):
        for head, saved in enumerate(row):
            values = [round(learning.scores[name][-1][layer][head], 4) for name in SCORES]
            began = [learning.emergence[name][layer][head] for name in ("induction", "previous")]
            rows.append([f"{layer}.{head}", *values, round(saved, 5), *(None if step < 0 else step for step in began)])
    chance: list[object] = ["chance", *(round(learning.chance[name], 4) for name in SCORES), 0, None, None]
    columns = ["head", *SCORES.values(), "loss without it, nats", "induction from step", "previous from step"]
    return html.table(columns, [*rows, chance])


def _texts(learning: Learning) -> str:
    """The fixed text at some snapshots, each token on its bits."""
    last = len(learning.steps) - 1
    chosen = sorted({round(last * n / (TEXTS - 1)) for n in range(TEXTS)})
    most = max(map(max, learning.bits))
    blocks = []
    for number in chosen:
        bits = learning.bits[number]
        label = f"step {learning.steps[number]:,}: {sum(bits) / max(1, learning.size):.3f} bits per byte"
        shades = [0.0, *(value / most for value in bits)]
        blocks.append(html.heading(label, 4) + html.coloured(learning.pieces, shades, [None, *bits], "bits"))
    return "".join(blocks)


def _text(text: Text) -> list[str]:
    first = max(0, len(text.pieces) - COLUMNS)
    shown = range(first, len(text.pieces))
    rows = [
        (f"layer {layer - 1}" if layer else "embedding", [_lens_cell(text, layer, t) for t in shown])
        for layer in range(len(text.top) - 1, -1, -1)
    ]
    difference = {name: a - b for name, (a, b) in text.attribution.items()}
    largest = sorted(difference, key=lambda name: -abs(difference[name]))[:SHOWN_PARTS]
    likeliest, other = map(repr, text.candidates)
    positions = len(text.patterns[0].attention)
    drawn = f"The last {positions} positions, so that the first column is none." if positions < len(text.pieces) else ""
    parts: list[list[object]] = [[name, *values, difference[name]] for name, values in text.attribution.items()]
    total = [sum(values[n] for values in text.attribution.values()) for n in range(2)]
    for name, (one, two) in (("sum", total), ("the model's logits", text.logits)):
        parts.append([name, one, two, one - two])
    return [
        html.heading("One text through the network", mark="text"),
        *(html.note(note) for note in text.notes),
        html.coloured(text.pieces, [0.0] * len(text.pieces), [None] * len(text.pieces), ""),
        html.heading("What it would say after each layer", 3, mark="lens"),
        html.note(f"The last {COLUMNS} of {len(text.pieces)} tokens.") if first else "",
        _explained(html.token_table(text.pieces[first:], rows), "lens"),
        html.heading("Where tokens settle", 3, mark="settles"),
        _settling(text),
        html.note("The first layer from which on the likeliest next token is the final one; number of tokens."),
        _explained(
            inspect_plots.grid(text.divergence, "KL to the final prediction, nats", "position", "layers read"),
            "divergence",
        ),
        html.heading("What each head attends to", 3, mark="patterns"),
        _explained(inspect_plots.patterns(text.patterns), "patterns", drawn),
        html.heading(f"Who decides the next token: {likeliest} over {other}", 3, mark="attribution"),
        _explained(
            inspect_plots.parts(largest, [difference[name] for name in largest], "logit difference"), "attribution"
        ),
        html.folded("All parts", html.table(["part", likeliest, other, "difference"], parts)),
        html.heading("How positions are told apart", 3, mark="angles"),
        _explained(inspect_plots.grid(text.angles, "cosine of the angle", "position", "rotary pair"), "angles"),
    ]


def _lens_cell(text: Text, layer: int, t: int) -> tuple[str, float, str]:
    """The likeliest token at a layer and position, its probability, and more about them."""
    top, probability = text.top[layer][t], text.probability[layer][t]
    lines = [f"{top!r} {probability:.3f}", f"KL {text.divergence[layer][t]:.2f}"]
    if t < len(text.pieces) - 1:
        lines.insert(1, f"next token: rank {text.rank[layer][t] + 1}, log p {text.logprob[layer][t]:.2f}")
    return top, probability, "; ".join(lines)


def _settling(text: Text) -> str:
    """How many tokens settle at each layer, by the kind of the token that follows in the text."""
    counts: dict[str, collections.Counter[int]] = collections.defaultdict(collections.Counter)
    for piece, layer in zip([*text.pieces[1:], text.candidates[0]], text.settles, strict=True):
        counts[_kind(piece)][layer] += 1
    rows = [
        [f"layer {layer - 1}" if layer else "the embedding", *(by_layer[layer] for by_layer in counts.values())]
        for layer in sorted(set(text.settles))
    ]
    return html.table(["settled in", *(f"before {kind}" for kind in counts)], rows)


def _kind(piece: str) -> str:
    inside = piece.strip()
    if not inside:
        return "a space or line break"
    if any(letter.isdigit() for letter in inside):
        return "a number"
    if not any(letter.isalpha() for letter in inside):
        return "punctuation"
    return "a word" if piece[0].isspace() else "the rest of a word"


def _finetuning(change: Finetuning) -> list[str]:
    means = {name: np.mean(values, axis=0).tolist() for name, values in change.values.items()}
    rows: list[list[object]] = []
    for name, values in change.values.items():
        for n, layer in enumerate(change.layers):
            rank, new = change.effective_rank[name][n], change.new_directions[name][n]
            rows.append([name, f"{layer}", round(values[n][0], 4), round(rank, 2), new])
    head = ["matrix", "layer", "largest value", "effective rank", f"new of {change.looked_at} directions"]
    most = max([*change.divergence, 1e-9])
    text = html.coloured(
        change.pieces, [0.0, *(value / most for value in change.divergence)], [None, *change.divergence], "nats"
    )
    return [
        html.heading("What fine-tuning changed", mark="finetuning"),
        _explained(inspect_plots.spectrum(means), "finetuning"),
        html.folded("Every matrix", html.table(head, rows, left=2)),
        html.heading("Where the two models differ", 3, mark="changed"),
        _explained(
            text, "changed text", f"The likeliest token is the same at {100 * change.same_top:.0f} % of the positions."
        ),
    ]


def _stretching(change: Stretching) -> list[str]:
    before, after = (np.array(values) for values in (change.induction_before, change.induction_after))
    layer, head = np.unravel_index(after.argmax(), after.shape)
    waves = zip(change.wavelengths_before, change.wavelengths_after, strict=True)
    shares = [np.array(values).mean((0, 1)).round(5) for values in (change.distance_before, change.distance_after)]
    by_range = [
        [f"{a:,} to {b - 1:,}", *(float(values[n]) for values in shares)]
        for n, (a, b) in enumerate(pairwise(change.edges))
    ]
    return [
        html.heading("What the longer context changed", mark="longer"),
        _explained(inspect_plots.wavelengths(change), "wavelengths"),
        _explained(
            inspect_plots.distances(change),
            "distances",
            f"Over a text whose copy begins after {change.period:,} tokens, the best induction score is "
            f"{before.max():.3f} before and {after.max():.3f} after (head {layer}.{head}).",
        ),
        html.folded(
            "In numbers",
            html.table(["rotary pair", "turn before", "turn after"], [[n, *turns] for n, turns in enumerate(waves)])
            + html.table(["distance", "share of attention before", "after"], by_range),
        ),
    ]


def _origins(origins: Origins) -> list[str]:
    searched = ", ".join(f"{tokens:,} tokens of {name}" for name, tokens in origins.searched.items())
    return [
        html.heading("Where did that come from?", mark="origins"),
        html.note(f"Searched: {searched}."),
        *(_answer(answer) for answer in origins.answers),
        _explained("", "origins"),
    ]


def _answer(answer: Answer) -> str:
    shades = [0.0] * len(answer.pieces)
    for source in answer.sources:
        shades[source.start : source.start + source.length] = [0.7] * source.length
    rows = [
        [source.corpus, source.name, f"… {source.before} ⟦{source.words}⟧ {source.after} …", source.length]
        for source in answer.sources
    ]
    share = sum(map(bool, shades)) / max(1, len(shades))
    return (
        html.heading(answer.prompt, 3)
        + html.coloured(answer.pieces, shades, [None] * len(shades), "")
        + html.note(f"{100 * share:.0f} % of its tokens are in runs of the training text.")
        + html.table(["text", "document", "where", "tokens"], rows, left=3)
    )
