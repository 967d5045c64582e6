"""Sources of text → a folder of token shards: tokenizer, training part, held-out part.

The sources are cut into parts. Workers turn each part into blocks (blocks.py), in any order and on any machine that
sees the same folders. The blocks are joined in the order of the parts (assembly.py). All intermediate files are in the
output folder, so that a killed run resumes where it was.
"""

import collections
import itertools
import json
import shutil
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from model.data import blocks, chat, sources
from model.data import tokenizer as tokenizers
from model.data.assembly import Assembly
from model.data.blocks import Report, Work
from model.data.cutting import CUTS, Cut
from model.data.document import Document
from model.data.encoder import Encoder, EncodersDiffer
from model.data.heldout import hash_of, is_heldout
from model.data.recipe import Recipe
from model.data.shards import JOURNAL
from model.data.sources import Part
from model.data.vocabulary import Vocabulary
from model.errors import KodaError
from model.figures import CorpusFigures
from model.files import atomic_write, read_json, sha256, sweep, write_json
from model.parent import die_with_parent

BUILDING = ".blocks"
UNCUT = 10_000  # documents of a source that is never cut by itself, whatever the held-out fraction is
LEARN_FROM = 20_000_000  # characters that a vocabulary is learned from: the first of the training part

Watch = Callable[[float, float, str], None]  # takes bytes done, bytes in all, and a message
Reports = Generator[Report, None, None]
Spread = Callable[[Iterator[Work]], Reports]  # runs work on workers; yields the reports in the order of the work


def prepare(out: Path, recipe: Recipe, spread: Spread, watch: Watch, readers: int = 1) -> CorpusFigures:
    """Fill `out` with tokenizer.json, train/, heldout/ and notes.json; returns the figures.

    A document is held out by its own hash, so that it stays in its part however the corpus grows. Raises KodaError for
    a source, a tokenizer, or input that cannot be used.
    """
    folder, done, journal = out / BUILDING, out / f"{BUILDING}.done", out / "train" / JOURNAL
    shutil.rmtree(done, ignore_errors=True)
    if not folder.exists():
        journal.unlink(missing_ok=True)  # without the blocks, its shards cannot be continued
    folder.mkdir(parents=True, exist_ok=True)
    sweep(out)
    plan = _plan(folder, recipe)
    parts = [Part(**{**part, "paths": tuple(part["paths"])}) for part in plan["parts"]]
    if not plan["cut"]:
        plan["cut"] = _cut(recipe, parts)
        _write_plan(folder, plan)
    recipe = replace(recipe, cut=plan["cut"])
    if not (out / "tokenizer.json").is_file():
        _vocabulary(recipe, parts, readers).save(out)
    vocabulary = tokenizers.load(str(out / "tokenizer.json"))
    try:
        if not plan["encoder"]:
            plan["encoder"] = Encoder(vocabulary.tokenizer).name
            plan["why"] = "" if plan["encoder"] == "tiktoken" else "its vocabulary is not bytes and merges alone"
        figures = _fill(out, vocabulary, parts, plan, recipe, spread, watch, readers)
    except EncodersDiffer as error:
        # What tiktoken encoded before may differ as well, so all of it is discarded; the plan records why. The blocks
        # go first, in one rename: shards without blocks are rebuilt, but blocks keep no tokens of complete shards.
        shutil.rmtree(folder / "given up", ignore_errors=True)
        (folder / "tiktoken").mkdir(exist_ok=True)
        (folder / "tiktoken").rename(folder / "given up")
        for part in ("train", "heldout"):
            shutil.rmtree(out / part, ignore_errors=True)
        plan |= {"encoder": "tokenizers", "why": str(error)}
        _write_plan(folder, plan)
        figures = _fill(out, vocabulary, parts, plan, recipe, spread, watch, readers)
    folder.rename(done)
    journal.unlink()
    shutil.rmtree(done)
    return figures


def heldout_documents(folder: Path) -> list[Document]:
    """The held-out documents that `prepare` wrote."""
    with (folder / "heldout" / "documents.jsonl").open("rb") as file:  # bytes: a text may contain line separators
        return [Document(**json.loads(line)) for line in file]


def on_this_machine(workers: int) -> Spread:
    """Processes of this machine as workers."""

    def spread(works: Iterator[Work]) -> Reports:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=die_with_parent) as pool:
            try:
                yield from in_order(works, lambda work: pool.submit(blocks.fill, work), ahead=4 * workers)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    return spread


def in_order(works: Iterator[Any], submit: Callable[[Any], Any], ahead: int) -> Iterator[Any]:
    """Submit work, at most `ahead` items before the one that is awaited; yields results in the order of the work."""
    futures = [submit(work) for work in itertools.islice(works, ahead)]
    while futures:
        yield futures.pop(0).result()
        futures += [submit(work) for work in itertools.islice(works, 1)]


def _plan(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """What to read, decided once: a resumed attempt reads the same parts, and the same commit of a data set."""
    path = folder / "plan.json"
    if not path.is_file():
        commits = sources.commits(recipe.source)
        parts = [
            part._asdict()
            for source in recipe.source
            for part in sources.parts(source, recipe, commits.get(source, ""))
        ]
        notes = [note for source in recipe.source for note in sources.passed_over(source)]
        facts = {"parts": parts, "commits": commits, "notes": notes, "cut": "", "encoder": "", "why": ""}
        _write_plan(folder, facts)
    return read_json(path)


def _write_plan(folder: Path, plan: dict[str, Any]) -> None:
    """In ASCII: the name of a file may have bytes that are not UTF-8, which JSON can only escape."""
    with atomic_write(folder / "plan.json") as file:
        json.dump(plan, file, indent=1)


def _cut(recipe: Recipe, parts: list[Part]) -> Cut:
    """Where documents are cut: as the recipe says, or at the first of CUTS by which both parts get documents."""
    if recipe.cut != "auto":
        return recipe.cut
    return next((cut for cut in CUTS if _divides(replace(recipe, cut=cut), parts)), CUTS[-1])


def _divides(recipe: Recipe, parts: list[Part]) -> bool:
    """Are there documents for both parts? Reads no further than to the first of each; many of one part are enough."""
    seen: dict[str, set[int]] = collections.defaultdict(set)  # the hashes of each source's documents
    places = set()
    for part in parts:
        if recipe.limit and len(seen[part.source]) >= recipe.limit:
            continue
        for document in blocks.kept(part, recipe, Report()):
            seen[part.source].add(hash_of(document.text))
            if recipe.limit and len(seen[part.source]) > recipe.limit:
                break
            places.add(is_heldout(document.text, recipe.heldout_fraction))
            if len(places) == 2 or len(seen[part.source]) == UNCUT:
                return True
    return False


def _vocabulary(recipe: Recipe, parts: list[Part], readers: int) -> Vocabulary:
    """The recipe's vocabulary: loaded, or trained on the beginning of the training part."""
    if recipe.tokenizer != "train":
        return chat.with_template(tokenizers.load(recipe.tokenizer), recipe.template)

    def texts() -> Iterator[str]:
        characters, counts = 0, collections.Counter[str]()  # documents by source
        for part in parts:
            if recipe.limit and counts[part.source] >= recipe.limit:
                continue
            for document in blocks.kept(part, recipe, Report(), readers):
                counts[part.source] += 1
                if recipe.limit and counts[part.source] > recipe.limit:
                    break
                if not is_heldout(document.text, recipe.heldout_fraction):
                    yield document.text
                    characters += len(document.text)
                if characters >= LEARN_FROM:
                    return

    return tokenizers.train(texts(), recipe.vocab_size)


def _fill(
    out: Path,
    vocabulary: Vocabulary,
    parts: list[Part],
    plan: dict[str, Any],
    recipe: Recipe,
    spread: Spread,
    watch: Watch,
    readers: int,
) -> CorpusFigures:
    folder = out / BUILDING / plan["encoder"]
    size = vocabulary.size
    reports = [blocks.report(folder, number) for number in range(len(parts))]
    submitted: set[int] = set()  # parts

    def works() -> Iterator[Work]:
        for number, part in enumerate(parts):
            if reports[number] is None and not assembly.full(part.source):
                submitted.add(number)
                fast = plan["encoder"] == "tiktoken"
                yield Work(str(folder), str(out / "tokenizer.json"), number, part, recipe, fast, readers)

    total, done = float(sum(part.size for part in parts)), 0
    with atomic_write(out / "heldout" / "documents.jsonl", "wb") as documents, closing(spread(works())) as results:
        assembly = Assembly(out, folder, size, recipe, documents)
        for number, part in enumerate(parts):
            done += part.size
            report, full = reports[number], assembly.full(part.source)
            if report is None and (number in submitted or not full):
                report = next(results)
            if report is None or full:  # read ahead but not needed
                continue
            if report.error:
                raise KodaError(report.error)
            assembly.add(number, part.source, report)
            tokens = assembly.train.position
            watch(done, total, f"{assembly.documents:,} documents, {tokens / 1e6:.1f} M tokens")
        _check_parts(assembly, recipe)
        facts = {"tokenizer": sha256(out / "tokenizer.json"), "commits": plan["commits"]}
        train, heldout = assembly.close(**facts)
    write_json(out / "notes.json", [*plan["notes"], *assembly.notes])
    write_json(out / "heldout/sources.json", assembly.sources)
    text_tokens = train["tokens"] - assembly.ends * (1 + len(vocabulary.special.beginning))
    return CorpusFigures(
        documents=assembly.documents,
        heldout_documents=assembly.heldout_documents,
        train_tokens=train["tokens"],
        heldout_tokens=heldout["tokens"],
        vocab_size=size,
        end_of_text=vocabulary.end,
        train_bytes=assembly.train_bytes,
        heldout_bytes=assembly.heldout_bytes,
        bytes_per_token=round(assembly.train_bytes / max(1, text_tokens), 3),
        read=assembly.read,
        dropped=_dropped(assembly),
        copies=assembly.copies,
        near_evaluation_items=dict(assembly.near),
        longest_document=assembly.longest,
        longest_document_name=assembly.longest_name,
        encoder=plan["encoder"],
        encoder_why=plan["why"],
        commits=plan["commits"],
        cut=recipe.cut,
        markers=assembly.markers,
        notes=len(plan["notes"]) + assembly.noted,
    )


def _dropped(assembly: Assembly) -> dict[str, int]:
    return {reason: count for reason, count in sorted(assembly.dropped.items()) if count}


def _check_parts(assembly: Assembly, recipe: Recipe) -> None:
    """Raise KodaError for a corpus that is too small for its two parts."""
    names = ", ".join(recipe.source)
    if not assembly.documents:
        left_out = ", ".join(f"{count} {reason}" for reason, count in _dropped(assembly).items()) or "none was left out"
        raise KodaError(f"tokenize.source = {names} is empty: no document has text in it ({left_out}).")
    if not assembly.heldout_documents or not assembly.train_documents:
        cure = (
            "more text, or another tokenize.heldout_fraction"
            if recipe.cut == "paragraphs"
            else "tokenize.cut=auto, which cuts long documents into pieces, or more documents"
        )
        raise KodaError(
            f"tokenize.source = {names} has {assembly.documents} document(s), {assembly.heldout_documents} of them "
            f"held out. Both parts need some: use {cure}."
        )
