"""Everything that `koda inspect` shows, measured in one process: the parts in their order, each with its own texts."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model import arrays, weights
from model.data import chat
from model.data import tokenizer as tokenizers
from model.data.recipe import Recipe
from model.data.shards import Shards
from model.data.vocabulary import Vocabulary
from model.errors import KodaError
from model.files import read_json
from model.generate import Generator
from model.inspect import changes, heads, lens, origins, spectra
from model.inspect.figures import Finetuning, HeadPattern, Inspection, Stretching, Text
from model.inspect.learning import learning, rows
from model.inspect.pieces import pieces_of
from model.inspect.walk import compiled
from model.llama import Llama
from model.rope import angles, frequencies
from model.sampling import Sampling

DEFAULT = 40  # tokens of the text that is taken apart, where none is named
PATTERNS = 24  # heads whose attention is shown
GENERATED = 64  # tokens of an answer
SCORES = 1e9  # attention scores of a layer that are in memory at once
COMPARED = 4  # rows that two contexts are compared on, at most
RANGES = 16  # of distance


class Timer:
    """Seconds by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[part] = round(time.perf_counter() - began, 2)


def measure(
    of: str,
    base: str,
    tokens: str,
    imported: bool,
    training: str,
    sft: str,
    tuned: bool,
    extend: str,
    text: str,
    recipe: dict[str, Any],
) -> Inspection:
    """Inspect the weights in `base`, with the tokenizer and the text in the folder `tokens`.

    `of` identifies the weights; `imported`: others trained them, on other text. `training`: the pretraining's folder,
    whose snapshots show how they were learned. `sft` and `extend`: the stages' folders, empty where there is none;
    `tuned`: sft changed the weights. `text`: what is sent through the network; empty: held-out text. `recipe`: how the
    training text was read (`model.data.recipe.Recipe`), to name its documents; empty: not known. Raises KodaError for a
    text that is too short or longer than the context, and for weights that cannot be read.
    """
    jax.config.update("jax_default_matmul_precision", "highest")  # a GPU would multiply float32 in TF32
    timer, vocabulary = Timer(), tokenizers.load(str(Path(tokens) / "tokenizer.json"))
    heldout = Shards(Path(tokens) / "heldout")
    taken_apart, notes = _text(vocabulary, heldout, text, weights.config(Path(base)).max_position_embeddings)
    try:
        model = weights.load(Path(base))
        chat_model = weights.load(Path(sft) / "weights") if sft and (tuned or extend) else None
        longer = weights.load(Path(extend) / "weights") if extend else None
    except arrays.Corrupt as error:
        raise KodaError(str(error)) from None
    with timer("one text"):
        one = _one_text(model, vocabulary, taken_apart, notes)
    with timer("how it learned"):
        learned = learning(model, vocabulary, Path(tokens), Path(training))
    written = [("After the text above", _generate(model, taken_apart.tolist(), vocabulary))] if not imported else []
    corpora = {} if imported else {"tokenize": Path(tokens) / "train"}
    finetuning = stretching = found = None
    if tuned and chat_model is not None:
        with timer("fine-tuning"):
            question = read_json(Path(sft) / "data/prompts.json")[0]
            finetuning = _finetuning(model, chat_model, vocabulary, question)
            prompt = chat.encode_prompt(vocabulary, question["messages"])
            written.append((question["messages"][-1]["content"], _generate(chat_model, prompt, vocabulary)))
        corpora["sft"] = Path(sft) / "data/train"
    if chat_model is not None and longer is not None and (affordable := _affordable_rows(longer)):
        with timer("longer context"):
            stretching = _stretching(chat_model, longer, heldout, min(COMPARED, affordable))
    if written:
        with timer("origins"):
            found = origins.origins(written, corpora, vocabulary, Recipe(**recipe) if recipe else None)
    return Inspection(
        of=of,
        imported=imported,
        layers=model.config.num_hidden_layers,
        heads=model.config.num_attention_heads,
        kv_heads=model.config.num_key_value_heads,
        context=model.config.max_position_embeddings,
        parameters=model.config.parameters,
        learning=learned,
        text=one,
        finetuning=finetuning,
        stretching=stretching,
        origins=found,
        seconds=timer.seconds,
    )


def _text(vocabulary: Vocabulary, heldout: Shards, text: str, context: int) -> tuple[np.ndarray, list[str]]:
    """The tokens to be sent through the network, and what was done to them."""
    begin = list(vocabulary.special.beginning)
    if not text:
        drawn = heldout.read(0, min(DEFAULT, context, len(heldout)))[0]
        return drawn, ["The beginning of the held-out text; `--text` takes another."]
    ids = [*begin, *vocabulary.plain(text)]
    if len(ids) < 2:
        raise KodaError(f"--text {text!r} is {len(ids)} token(s); there is something to see from two on.")
    if len(ids) > context:
        raise KodaError(f"--text has {len(ids)} tokens, the model's context is {context}. Use a shorter one.")
    special = [token for token in map(vocabulary.text_of, {*vocabulary.stops, *begin}) if token and token in text]
    return np.array(ids), [f"`{token}` in the text is read as letters, as in training." for token in special]


def _one_text(model: Llama, vocabulary: Vocabulary, tokens_T: np.ndarray, notes: list[str]) -> Text:
    reading = jax.tree.map(np.asarray, compiled(lens.read)(model, jnp.asarray(tokens_T)))
    likeliest = np.argsort(-reading.logits_V, kind="stable")[:2]
    parts = compiled(lens.attribute)(model, jnp.asarray(tokens_T), jnp.asarray(likeliest))
    attribution = {"embedding": np.asarray(parts.embedding).tolist()}
    for layer, (by_head, bias, mlp) in enumerate(zip(parts.heads, parts.biases, parts.mlps, strict=True)):
        attribution |= {
            f"layer {layer} · head {head}": np.asarray(share).tolist() for head, share in enumerate(by_head)
        }
        if np.any(bias):
            attribution[f"layer {layer} · bias"] = np.asarray(bias).tolist()
        attribution[f"layer {layer} · MLP"] = np.asarray(mlp).tolist()
    angles_TP = angles(jnp.arange(len(tokens_T))[None], frequencies(model.config))[0]
    view = reading.lens
    return Text(
        pieces=pieces_of(vocabulary, tokens_T.tolist()),
        notes=notes,
        top=[[pieces_of(vocabulary, [token])[0] for token in row] for row in view.top.tolist()],
        probability=view.probability.tolist(),
        rank=view.rank.tolist(),
        logprob=view.logprob.tolist(),
        divergence=view.divergence.tolist(),
        settles=view.settles.tolist(),
        patterns=_patterns(reading.attention_LHTS),
        candidates=[pieces_of(vocabulary, [token])[0] for token in likeliest.tolist()],
        logits=reading.logits_V[likeliest].tolist(),
        attribution=attribution,
        angles=np.cos(np.asarray(angles_TP)).T.tolist(),
    )


def _patterns(attention_LHTS: np.ndarray) -> list[HeadPattern]:
    """All heads, or those that attend most sharply to anything but the first position."""
    count = attention_LHTS.shape[1]
    sharpness = attention_LHTS[..., 1:].max(-1).mean(-1).reshape(-1)
    chosen = sorted(np.argsort(-sharpness, kind="stable")[:PATTERNS].tolist())
    places = [divmod(number, count) for number in chosen]
    return [HeadPattern(layer, head, attention_LHTS[layer, head].round(4).tolist()) for layer, head in places]


def _finetuning(base: Llama, tuned: Llama, vocabulary: Vocabulary, question: dict[str, Any]) -> Finetuning:
    changed = changes.updates(base, tuned)
    conversation = [*question["messages"], {"role": "assistant", "content": question["answer"]}]
    ids = chat.encode(vocabulary, conversation).ids[: base.config.max_position_embeddings]
    compared = changes.compare(base, tuned, np.array(ids))
    return Finetuning(
        layers=spectra.layers(base.config),
        values={name: [change.values for change in row] for name, row in changed.items()},
        effective_rank={name: [change.effective_rank for change in row] for name, row in changed.items()},
        new_directions={name: [change.new_directions for change in row] for name, row in changed.items()},
        looked_at=changes.SHOWN,
        pieces=pieces_of(vocabulary, ids),
        divergence=np.asarray(compared.divergence)[:-1].tolist(),
        same_top=float(np.asarray(compared.same_top)[:-1].mean()),
    )


def _affordable_rows(model: Llama) -> int:
    """Rows of the whole context whose attention in a layer there is memory for."""
    return int(SCORES / (model.config.num_attention_heads * model.config.max_position_embeddings**2))


def _stretching(before: Llama, after: Llama, heldout: Shards, count: int) -> Stretching:
    """The change as `count` rows of the new context show it."""
    old, new = before.config.max_position_embeddings, after.config.max_position_embeddings
    rows_BT = rows(heldout, new, count)
    edges = sorted({*np.unique(np.geomspace(1, rows_BT.shape[1], RANGES).astype(int)).tolist(), 0})
    period = min(5 * old // 4, (old + new) // 2)  # beyond the old context, and room for a part of the copy
    repeated_BT = heads.repeated(np.bincount(np.ravel(rows_BT)), len(rows_BT), period)[:, :new]
    distance, induction = (
        [function(model, *more).tolist() for model in (before, after)]
        for function, more in ((changes.by_distance, (rows_BT, edges)), (changes.induction_at, (repeated_BT, period)))
    )
    return Stretching(
        before=old,
        after=new,
        wavelengths_before=changes.wavelengths(before.config),
        wavelengths_after=changes.wavelengths(after.config),
        edges=edges,
        distance_before=distance[0],
        distance_after=distance[1],
        period=period,
        induction_before=induction[0],
        induction_after=induction[1],
    )


def _generate(model: Llama, prompt: list[int], vocabulary: Vocabulary) -> list[int]:
    """What a model writes after a prompt, up to its end or as far as the context goes."""
    return list(Generator(model)(prompt, vocabulary.stops, Sampling(limit=GENERATED)))
