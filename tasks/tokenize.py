"""Stage 1: text → tokenizer and token shards, with a held-out part."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from prefect import flow, task
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from model.data import blocks, sources, tokenizer
from model.data.blocks import Report, Work
from model.data.cutting import Cut
from model.data.filters import Overlap
from model.data.prepare import Reports, in_order, on_this_machine, prepare
from model.data.recipe import Recipe
from model.data.special import END_OF_TEXT
from model.errors import KodaError
from model.figures import CorpusFigures
from model.files import read_json, sha256
from tasks import retries
from tasks.progress import log_line, progress
from tasks.section import OPERATIONAL, Section, weighted
from tasks.stage import stage

SHOWN = 3  # decisions about documents that are printed; more of them are in notes.json
TOGETHER = 8  # parts in one task of an engine, of some 8 MB of text each


class Tokenize(Section):
    source: str | dict[str, PositiveFloat] = "docs"
    """Where the text comes from: a file or a folder of .txt, .md, .jsonl, .jsonl.gz, .jsonl.zst and .parquet, or a
    .json; hub:USER/NAME[/CONFIG][@REVISION], streamed from the Hugging Face Hub, at the newest commit where none is
    named (it is recorded); or `docs`, the documentation installed on this machine (`docs:stdlib,numpy` for some of it).
    Several, each with how often it is read: {docs = 1, notes = 2.5}; where that is not whole, a document's hash
    decides."""
    text_column: str = "text"
    """The column of JSONL, Parquet and Hub rows that has the text."""
    encoding: str = ""
    """Of text files that are not UTF-8: cp1251, gbk, shift_jis, …; empty: Windows-1252, where few enough letters have
    accents that it can be."""
    split: str = "train"
    """The split of a Hub data set."""
    cut: Cut = "auto"
    """Where a document is cut into several: `never`; `endoftext`, at each `<|endoftext|>`; `paragraphs`, there, and a
    text of more than 6,000 characters around the pieces that are held out; `auto`, as the first of these by which some
    text is held out and some is not."""
    limit: NonNegativeInt = 0
    """Documents that are kept of each source at most; 0: all."""
    bad_input: Literal["refuse", "skip"] = "refuse"
    """What cannot be read as text (a line that is no JSON, a file cut short, a row without the column, …) ends the
    stage, or is left out, counted and named."""
    shortest: NonNegativeInt = 0
    """Documents of fewer characters are left out."""
    longest: NonNegativeInt = 0
    """Documents of more characters are left out; 0: none."""
    quality: bool = False
    """Leave out documents that repeat their lines, are mostly symbols, or have lost letters: rules for any language."""
    deduplicate: bool = True
    """Leave out a document whose text was there before, to the letter."""
    contamination: str = ""
    """A folder of evaluation items (.jsonl): documents that share 13 words in a row with one are counted and named."""
    drop_contaminated: bool = False
    """Leave those documents out."""
    tokenizer: str = "train"
    """`train` learns a byte-level BPE here; `gpt2` is GPT-2's, from the Hub; else a tokenizer.json, a .gguf file, or a
    folder of a Hugging Face model, whose special tokens come along, or with vocab.json and merges.txt."""
    template: Literal["own", "koda"] = "own"
    """The chat template for a tokenizer that has one of its own: that one, or Koda's."""
    vocab_size: Annotated[int, Field(ge=257, le=1 << 20)] = 4096
    """Entries of a vocabulary that is learned here: 256 bytes, the end-of-text token, and what is merged from them."""
    heldout_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.03
    """Share of the documents that is never trained on, chosen by the hash of each document's own text."""
    shard_tokens: PositiveInt = 1 << 24
    """Tokens in one shard file."""
    workers: Annotated[int, Field(ge=0, json_schema_extra=OPERATIONAL)] = 0
    """Processes that read and encode; 0: one for each core."""
    dask: Annotated[str, Field(json_schema_extra=OPERATIONAL)] = ""
    """Address of a Dask scheduler (tcp://host:8786) whose workers do it instead, where they see the same folders;
    needs the extra `dask`."""

    @field_validator("source")
    @classmethod
    def something(cls, source: str | dict[str, float]) -> str | dict[str, float]:
        if not source:
            raise ValueError("tokenize.source names nothing to read; `docs` needs no network.")
        return source

    @field_validator("encoding")
    @classmethod
    def known_encoding(cls, encoding: str) -> str:
        try:
            b"text".decode(encoding or "utf-8", "replace")  # of no byte, Python does not look the encoding up
        except (LookupError, ValueError):
            raise ValueError(
                f"tokenize.encoding = {encoding!r} is not an encoding that Python knows; cp1251, koi8-r, gbk, big5, "
                "shift_jis, euc-kr and utf-16 are some."
            ) from None
        return encoding

    def recipe(self) -> Recipe:
        settings = self.model_dump(exclude={"workers", "dask"})
        return Recipe(**{**settings, "source": weighted(self.source)})

    def check(self) -> None:
        for source in weighted(self.source):
            sources.check(source)
        if self.tokenizer not in ("train", "gpt2"):
            tokenizer.load(self.tokenizer)
        if self.contamination:
            Overlap.files(self.contamination)

    def fingerprint(self) -> str:
        read = [*map(sources.fingerprint, weighted(self.source)), tokenizer.fingerprint(self.tokenizer)]
        return "\n".join([*read, *map(sha256, Overlap.files(self.contamination) if self.contamination else ())])


@stage(version=6, resumes=True)
def tokenize(out: Path, settings: Tokenize) -> CorpusFigures:
    """Text → tokenizer.json, train/ and heldout/."""
    figures = (_on_dask(settings) if settings.dask else _here)(out, settings)
    dropped = [f"{count:,} {why}" for why, count in figures.dropped.items()]
    near = [f"{count:,} near an item of {name}" for name, count in figures.near_evaluation_items.items()]
    if counts := ", ".join([*dropped, *near]):
        log_line(f"tokenize   of {figures.read:,} read: {counts}")
    if figures.cut != "never":
        log_line(f"tokenize   documents were cut (tokenize.cut={figures.cut}): there are {figures.documents:,}")
    if figures.markers:
        log_line(
            f"tokenize   {figures.markers:,} `{END_OF_TEXT}` were read as letters; tokenize.cut=endoftext cuts there"
        )
    if settings.tokenizer == "train" and figures.vocab_size < settings.vocab_size:
        log_line(
            f"tokenize   the vocabulary has {figures.vocab_size:,} entries, not tokenize.vocab_size = "
            f"{settings.vocab_size:,}: the text has no more to merge"
        )
    if figures.encoder_why:
        log_line(f"tokenize   encoded by {figures.encoder}, not tiktoken: {figures.encoder_why}")
    notes: list[str] = read_json(out / "notes.json")
    for note in notes[:SHOWN]:
        log_line(f"tokenize   {note}")
    if figures.notes > SHOWN:
        log_line(f"tokenize   … and {figures.notes - SHOWN:,} more, in notes.json")
    return figures


@task(name="tokenize", **retries.STAGE)
def _here(out: Path, settings: Tokenize) -> CorpusFigures:
    """On this machine; a worker that dies fails the task, whose retry keeps the blocks that are done."""
    workers = settings.workers or len(os.sched_getaffinity(0))
    with progress("tokenize", 0) as watch:
        return prepare(out, settings.recipe(), on_this_machine(workers), watch.of, readers=workers)


def _on_dask(settings: Tokenize) -> Any:
    """The same through Prefect's task runner for Dask: a flow whose tasks its workers run."""
    try:
        from prefect_dask import DaskTaskRunner
    except ImportError:
        raise KodaError(
            "tokenize.dask needs the extra `dask`. In Koda's folder: "
            "uv pip install --constraint requirements.lock --editable '.[dask]'"
        ) from None

    read = [source for source in (*weighted(settings.source), settings.contamination) if source and _is_path(source)]
    if relative := [source for source in read if not Path(source).is_absolute()]:
        raise KodaError(f"tokenize.dask: {relative[0]!r} must be an absolute path; the workers start in other folders.")

    def spread(works: Iterator[Work]) -> Reports:
        groups = iter(lambda: list(itertools.islice(works, TOGETHER)), [])
        for reports in in_order(groups, parts.submit, ahead=64):
            yield from reports

    runner: Any = DaskTaskRunner(address=settings.dask)

    @flow(name="tokenize", task_runner=runner, persist_result=False, validate_parameters=False)
    def spread_out(out: Path, settings: Tokenize) -> CorpusFigures:
        with progress("tokenize", 0) as watch:
            return prepare(out.absolute(), settings.recipe(), spread, watch.of)

    return spread_out


def _is_path(source: str) -> bool:
    return not (sources.is_docs(source) or sources.is_hub(source))


@task(name="tokenize parts", **retries.STAGE)
def parts(works: list[Work]) -> list[Report]:
    """Some parts, wherever the engine has room."""
    return [blocks.fill(work) for work in works]
