"""From a source of text to a folder of token shards: tokenizer, training part, held-out part."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from model.data import sources
from model.data import tokenizer as tokenizers
from model.data.document import Document
from model.data.shards import ShardWriter
from model.errors import KodaError
from model.files import finished, write_json

LEARN_FROM = 20_000_000  # characters that a vocabulary is learned from: the first ones of the training part
TOGETHER = 256  # documents encoded in one call, which the tokenizer spreads over the cores


def prepare(
    out: Path,
    *,
    source: str,
    tokenizer: str,
    vocab_size: int,
    heldout_fraction: float,
    shard_tokens: int,
    workers: int,
    watch: Callable[[int, str], None],
) -> dict[str, Any]:
    """Fill `out` with tokenizer.json, train/, heldout/ and notes.json; returns the figures.

    A document is held out by its own hash, so that it stays on its side however the corpus grows. `watch` is called
    with the documents read so far. Raises KodaError for a source or tokenizer that cannot be used.
    """
    notes: list[str] = []
    read = sources.documents(source, workers, notes.append)
    if tokenizer == "train":
        first = list(_until(read, LEARN_FROM))
        learner = tokenizers.train((d.text for d in first if not is_heldout(d.text, heldout_fraction)), vocab_size)
        read = itertools.chain(first, read)
    else:
        learner = tokenizers.load(tokenizer)
    size = learner.get_vocab_size()
    out.mkdir(parents=True, exist_ok=True)
    learner.save(str(out / "tokenizer.json"))

    train = ShardWriter(out / "train", size, shard_tokens)
    held: list[Document] = []
    documents = characters = text_bytes = longest = 0
    for group in _groups(read, TOGETHER):
        for document in group:
            documents += 1
            characters += len(document.text)
            longest = max(longest, len(document.text))
        held += [d for d in group if is_heldout(d.text, heldout_fraction)]
        learned = [d for d in group if not is_heldout(d.text, heldout_fraction)]
        text_bytes += sum(len(d.text.encode()) for d in learned)
        _write(train, learner, learned)
        watch(documents, f"{documents:,} documents, {characters / 1e6:.1f} M characters")
    if not documents:
        raise KodaError(f"tokenize.source = {source!r} is empty: not one document with text in it.")
    if not held or (not train.shards and not train._held):
        raise KodaError(
            f"tokenize.source = {source!r} gives {documents} document(s), {len(held)} of them held out: both parts "
            "need some. Give it more documents, or another tokenize.heldout_fraction."
        )
    facts = {"tokenizer": _digest(out / "tokenizer.json")}
    learned_manifest = train.close(bytes=text_bytes, **facts)
    heldout = ShardWriter(out / "heldout", size, shard_tokens)
    _write(heldout, learner, held)
    held_bytes = sum(len(d.text.encode()) for d in held)
    heldout_manifest = heldout.close(bytes=held_bytes, **facts)
    with finished(out / "heldout" / "documents.jsonl") as file:
        file.writelines(json.dumps(d._asdict(), ensure_ascii=False) + "\n" for d in held)
    write_json(out / "notes.json", notes)
    return {
        "documents": documents,
        "heldout_documents": len(held),
        "train_tokens": learned_manifest["tokens"],
        "heldout_tokens": heldout_manifest["tokens"],
        "heldout_bytes": held_bytes,
        "bytes_per_token": round(text_bytes / max(1, learned_manifest["tokens"] - documents + len(held)), 3),
        "vocab_size": size,
        "end_of_text": tokenizers.end_of_text(learner),
        "longest_document": longest,
        "notes": len(notes),
    }


def is_heldout(text: str, fraction: float) -> bool:
    """Does this text belong to the held-out part? Its own bytes decide, and nothing else."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8]) < fraction * 2**64


def heldout_documents(folder: Path) -> list[Document]:
    """The held-out documents that `prepare` put aside."""
    lines = (folder / "heldout" / "documents.jsonl").read_text(encoding="utf-8").splitlines()
    return [Document(**json.loads(line)) for line in lines]


def _write(writer: ShardWriter, tokenizer: Tokenizer, documents: list[Document]) -> None:
    end = tokenizers.end_of_text(tokenizer)
    for ids in tokenizers.encode_plain(tokenizer, (d.text for d in documents)):
        writer.add([*ids, end])


def _until(documents: Iterator[Document], characters: int) -> Iterator[Document]:
    for document in documents:
        yield document
        characters -= len(document.text)
        if characters <= 0:
            return


def _groups(documents: Iterator[Document], size: int) -> Iterator[list[Document]]:
    while group := list(itertools.islice(documents, size)):
        yield group


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
