"""Answers beside the text that the model learned from: which of their words are there, and in which document."""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from model.data import blocks, sources
from model.data.blocks import Report
from model.data.heldout import hash_of
from model.data.recipe import Recipe
from model.data.shards import Shards
from model.data.vocabulary import Vocabulary
from model.errors import KodaError
from model.inspect import spans
from model.inspect.figures import Answer, Origins, Source
from model.inspect.pieces import pieces_of

AROUND = 16  # tokens that are shown before and after a source
READ = 300_000_000  # characters that are read again at most, to name documents
BEGINNING = 40  # characters that stand for the name of a document that is not found again


def origins(
    written: Sequence[tuple[str, list[int]]], corpora: dict[str, Path], vocabulary: Vocabulary, recipe: Recipe | None
) -> Origins:
    """Each of `written`, a prompt and the token ids that a model wrote after it, with the longest runs that are in the
    shards of `corpora`; `recipe`: how the corpus `tokenize` was read, to name its documents."""
    shards = {name: Shards(folder) for name, folder in corpora.items()}
    runs: list[list[tuple[str, spans.Span]]] = [
        sorted(
            ((name, span) for name in shards for span in spans.longest_spans(shards[name], np.array(ids))),
            key=lambda run: -run[1].length,
        )
        for _, ids in written
    ]
    texts = {
        (name, span): vocabulary.tokenizer.decode(_tokens(shards[name], span.first, span.stop))
        for some in runs
        for name, span in some
    }
    wanted = {hash_of(text) for (name, _), text in texts.items() if name == "tokenize"}
    names = names_of(wanted, recipe) if recipe and wanted else {}

    def source(name: str, span: spans.Span) -> Source:
        edges = (max(span.first, span.at - AROUND), span.at, span.at + span.length)
        ends = (edges[1], edges[2], min(span.stop, edges[2] + AROUND))
        before, words, after = (
            vocabulary.tokenizer.decode(_tokens(shards[name], a, b)) for a, b in zip(edges, ends, strict=True)
        )
        text = texts[name, span]
        return Source(
            start=span.start,
            length=span.length,
            corpus=name,
            name=names.get(hash_of(text)) or f"“{' '.join(text[:BEGINNING].split())} …”",
            before=before,
            words=words,
            after=after,
        )

    answers = [
        Answer(prompt=prompt, pieces=pieces_of(vocabulary, ids), sources=[source(*run) for run in some])
        for (prompt, ids), some in zip(written, runs, strict=True)
    ]
    return Origins(searched={name: len(shards[name]) for name in shards}, least=spans.LEAST, answers=answers)


def _tokens(shards: Shards, start: int, stop: int) -> list[int]:
    return shards.read(start, stop - start)[0].tolist() if stop > start else []


def names_of(hashes: set[int], recipe: Recipe) -> dict[int, str]:
    """The names of the documents with these hashes, read again from sources that are on this machine; of a large corpus
    the beginning is read."""
    names: dict[int, str] = {}
    recipe, read = replace(recipe, bad_input="skip", contamination="", drop_contaminated=False), 0
    for source in filter(lambda name: not sources.is_hub(name), recipe.source):
        with contextlib.suppress(KodaError, OSError):  # a source that is not there any more
            for part in sources.parts(source, recipe, ""):
                for document in blocks.kept(part, recipe, Report()):
                    if (digest := hash_of(document.text)) in hashes:
                        names[digest] = document.name
                    read += len(document.text)
                    if len(names) == len(hashes) or read > READ:
                        return names
    return names
