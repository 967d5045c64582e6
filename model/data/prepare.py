"""From sources of text to a folder of token shards: tokenizer, training part, held-out part.

The sources are cut into parts; workers turn each into blocks (blocks.py), in any order and on any machine that sees the
same folders; the blocks are joined in the order of the parts (assembly.py). All of it lies in the folder being filled,
so that a killed run goes on where it was.
"""

import collections
import itertools
import json
import shutil
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from model.data import blocks, sources
from model.data import tokenizer as tokenizers
from model.data.assembly import Assembly
from model.data.blocks import Report, Work
from model.data.document import Document
from model.data.encoder import Encoder, EncodersDiffer
from model.data.recipe import Recipe
from model.data.shards import JOURNAL
from model.data.sources import Part
from model.errors import KodaError
from model.files import finished, read_json, sha256, sweep, write_json
from model.training.protocol import die_with_parent

BUILDING = ".blocks"
LEARN_FROM = 20_000_000  # characters that a vocabulary is learned from: the first ones of the training part

Watch = Callable[[float, float, str], None]  # done, of how much, and a word on it
Reports = Generator[Report, None, None]
Spread = Callable[[Iterator[Work]], Reports]  # gives work to workers; their reports come in the order of the work


def prepare(out: Path, recipe: Recipe, spread: Spread, watch: Watch, readers: int = 1) -> dict[str, Any]:
    """Fill `out` with tokenizer.json, train/, heldout/ and notes.json; returns the figures.

    A document is held out by its own hash, so that it stays on its side however the corpus grows. Raises KodaError for
    a source, a tokenizer, or a piece of input that cannot be used.
    """
    folder, done, journal = out / BUILDING, out / f"{BUILDING}.done", out / "train" / JOURNAL
    shutil.rmtree(done, ignore_errors=True)
    if not folder.exists():
        journal.unlink(missing_ok=True)  # it vouches for shards together with the blocks alone
    folder.mkdir(parents=True, exist_ok=True)
    sweep(out)
    plan = _plan(folder, recipe)
    parts = [Part(**{**part, "paths": tuple(part["paths"])}) for part in plan["parts"]]
    if not (out / "tokenizer.json").is_file():
        with finished(out / "tokenizer.json") as file:
            file.write(_learner(recipe, parts, readers).to_str(pretty=True))
    learner = tokenizers.load(str(out / "tokenizer.json"))
    try:
        if not plan["encoder"]:
            plan["encoder"] = Encoder(learner).name
            plan["why"] = "" if plan["encoder"] == "tiktoken" else "its vocabulary is not bytes and merges alone"
        figures = _fill(out, learner, parts, plan, recipe, spread, watch, readers)
    except EncodersDiffer as error:
        # What tiktoken encoded so far is not to be trusted either; that it was given up is remembered. The blocks go
        # first, and at once: shards without blocks are made again, blocks without their tokens are not.
        shutil.rmtree(folder / "given up", ignore_errors=True)
        (folder / "tiktoken").mkdir(exist_ok=True)
        (folder / "tiktoken").rename(folder / "given up")
        for part in ("train", "heldout"):
            shutil.rmtree(out / part, ignore_errors=True)
        plan |= {"encoder": "tokenizers", "why": str(error)}
        write_json(folder / "plan.json", plan)
        figures = _fill(out, learner, parts, plan, recipe, spread, watch, readers)
    folder.rename(done)
    journal.unlink()
    shutil.rmtree(done)
    return figures


def heldout_documents(folder: Path) -> list[Document]:
    """The held-out documents that `prepare` put aside."""
    with (folder / "heldout" / "documents.jsonl").open("rb") as file:  # bytes: a text may hold other line separators
        return [Document(**json.loads(line)) for line in file]


def on_this_machine(workers: int) -> Spread:
    """Workers that are processes of this machine."""

    def spread(works: Iterator[Work]) -> Reports:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=die_with_parent) as pool:
            try:
                yield from in_order(works, lambda work: pool.submit(blocks.fill, work), ahead=4 * workers)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    return spread


def in_order(works: Iterator[Any], submit: Callable[[Any], Any], ahead: int) -> Iterator[Any]:
    """Submit work, at most so much `ahead` of what is taken, and yield the results in the order of the work."""
    going = [submit(work) for work in itertools.islice(works, ahead)]
    while going:
        yield going.pop(0).result()
        going += [submit(work) for work in itertools.islice(works, 1)]


def _plan(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """What is to be read, decided once: a life that goes on reads the same parts, and the same commit of a data set."""
    path = folder / "plan.json"
    if not path.is_file():
        commits = sources.commits(recipe.source)
        parts = [
            part._asdict()
            for source in recipe.source
            for part in sources.parts(source, recipe, commits.get(source, ""))
        ]
        write_json(path, {"parts": parts, "commits": commits, "encoder": "", "why": ""})
    return read_json(path)


def _learner(recipe: Recipe, parts: list[Part], readers: int) -> Tokenizer:
    if recipe.tokenizer != "train":
        return tokenizers.load(recipe.tokenizer)

    def texts() -> Iterator[str]:
        characters, taken = 0, collections.Counter[str]()
        for part in parts:
            if recipe.limit and taken[part.source] >= recipe.limit:
                continue
            for document in blocks.kept(part, recipe, Report(), readers):
                taken[part.source] += 1
                if recipe.limit and taken[part.source] > recipe.limit:
                    break
                if not blocks.is_heldout(document.text, recipe.heldout_fraction):
                    yield document.text
                    characters += len(document.text)
                if characters >= LEARN_FROM:
                    return

    return tokenizers.train(texts(), recipe.vocab_size)


def _fill(
    out: Path,
    learner: Tokenizer,
    parts: list[Part],
    plan: dict[str, Any],
    recipe: Recipe,
    spread: Spread,
    watch: Watch,
    readers: int,
) -> dict[str, Any]:
    folder = out / BUILDING / plan["encoder"]
    size = learner.get_vocab_size()
    reports = [blocks.report(folder, number) for number in range(len(parts))]
    given: set[int] = set()  # to workers

    def works() -> Iterator[Work]:
        for number, part in enumerate(parts):
            if reports[number] is None and not assembly.full(part.source):
                given.add(number)
                fast = plan["encoder"] == "tiktoken"
                yield Work(str(folder), str(out / "tokenizer.json"), number, part, recipe, fast, readers)

    total, done = float(sum(part.size for part in parts)), 0
    with finished(out / "heldout" / "documents.jsonl", "wb") as documents, closing(spread(works())) as results:
        assembly = Assembly(out, folder, size, recipe, documents)
        for number, part in enumerate(parts):
            done += part.size
            report, full = reports[number], assembly.full(part.source)
            if report is None and (number in given or not full):
                report = next(results)
            if report is None or full:  # read ahead, and not needed
                continue
            if report.error:
                raise KodaError(report.error)
            assembly.add(number, part.source, report)
            tokens = assembly.train.given
            watch(done, total, f"{assembly.learned + assembly.held:,} documents, {tokens / 1e6:.1f} M tokens")
        figures = _figures(assembly, recipe, plan)
        facts = {"tokenizer": sha256(out / "tokenizer.json"), "commits": plan["commits"]}
        train, heldout = assembly.close(**facts)
    write_json(out / "notes.json", assembly.notes)
    write_json(out / "heldout/sources.json", assembly.sources)
    text_tokens = train["tokens"] - assembly.ends
    return {
        **figures,
        "train_tokens": train["tokens"],
        "heldout_tokens": heldout["tokens"],
        "bytes_per_token": round(assembly.train_bytes / max(1, text_tokens), 3),
        "vocab_size": size,
        "end_of_text": tokenizers.end_of_text(learner),
    }


def _figures(assembly: Assembly, recipe: Recipe, plan: dict[str, Any]) -> dict[str, Any]:
    """What the corpus was found to be. Raises KodaError for one that is too small for its two parts."""
    dropped = {why: count for why, count in sorted(assembly.dropped.items()) if count}
    named = ", ".join(recipe.source)
    if not assembly.learned + assembly.held:
        left_out = ", ".join(f"{count} {why}" for why, count in dropped.items()) or "nothing was left out"
        raise KodaError(f"tokenize.source = {named} is empty: not one document with text in it ({left_out}).")
    if not assembly.held or not assembly.learned:
        raise KodaError(
            f"tokenize.source = {named} gives {assembly.learned + assembly.held} document(s), {assembly.held} of them "
            "held out: both parts need some. Give it more documents, or another tokenize.heldout_fraction."
        )
    return {
        "documents": assembly.learned + assembly.held,
        "heldout_documents": assembly.held,
        "heldout_bytes": assembly.heldout_bytes,
        "train_bytes": assembly.train_bytes,
        "read": assembly.read,
        "dropped": dropped,
        "copies": assembly.copies,
        "near_evaluation_items": dict(assembly.near),
        "longest_document": assembly.longest,
        "longest_document_name": assembly.longest_name,
        "encoder": plan["encoder"],
        "encoder_why": plan["why"],
        "commits": plan["commits"],
        "notes": len(assembly.notes),
    }
