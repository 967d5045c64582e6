"""`koda convert`: a model that others trained, or a run's, → exports for transformers, llama.cpp and MLX, anywhere."""

import argparse
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flows.cli.located import Located, locate
from flows.server.embedded import prepare_environment
from model.errors import KodaError
from model.figures import PretrainFigures
from model.files import COMMIT
from model.training.records import CHECKPOINTS

if TYPE_CHECKING:
    from model.config import LlamaConfig
    from model.data.vocabulary import Vocabulary
    from model.export.about import About as Statement
    from model.figures import ParityFigures
    from tasks.convert import Convert

BESIDE = ".model"  # in the folder that is being built: the model in Koda's form, and the text it is compared on
COMPARED = 60_000  # characters of that text
TYPE = re.compile(r"[.-](F32|B?F16|I?Q\d\w*)$", re.IGNORECASE)  # the number type at the end of a GGUF file's name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a Hugging Face folder (safetensors) or a .gguf file of a Llama; a run, or RUN/STAGE",
    )
    parser.add_argument("--to", default="hf,gguf,mlx", metavar="FORMATS", help="some of hf,gguf,mlx (default: all)")
    parser.add_argument(
        "--quant",
        default="",
        metavar="TYPES",
        help="number types, of any format: F16, Q8_0, 4bit, bfloat16, … (default: auto,fp16,8bit,4bit)",
    )
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="TEXT",
        help="a text file that K-quants and MLX's 4bit are fitted to (default: a run's training text; of others, none)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="a new folder (default: NAME-exports)")


def main(arguments: argparse.Namespace) -> None:
    theirs = Path(arguments.model)
    located = None if theirs.exists() and not (theirs / COMMIT).is_file() else locate(arguments.model)
    name = TYPE.sub("", theirs.stem) if theirs.suffix == ".gguf" else theirs.absolute().name
    if located is not None and located.tokens is not None:
        name = located.tokens.parent.name
    out = arguments.out or Path(f"{name}-exports")
    if out.exists():
        raise KodaError(f"{out} is there already. Name a new folder with --out.")
    text = None if arguments.calibrate is None else read_text(arguments.calibrate)
    # Refused before imports that take seconds.
    source = _of_run(located) if located is not None else _of_others(theirs, name)
    prepare_environment()
    from flows.environment import causes_only

    chosen = settings(
        [text for text in arguments.to.split(",") if text], [text for text in arguments.quant.split(",") if text]
    )
    chosen.check_runtimes()
    if misfit := chosen.misfit(source.shape):
        raise KodaError(f"{arguments.model}: {misfit} Choose other types with --quant.")
    with causes_only():
        parity = convert(source, out, chosen, text)
    print("\n".join(as_lines(out, parity)))


class Source(NamedTuple):
    """A model to be exported."""

    path: Path
    shape: "LlamaConfig"
    vocabulary: "Vocabulary"
    about: "Statement"
    run: Path | None  # whose weights these are; None: others trained it


def _of_others(path: Path, name: str) -> Source:
    from model.export import original
    from model.export.about import About as Statement

    model = original.read(path)
    about = Statement(name, license=model.license, languages=model.languages, base_model=model.repository)
    return Source(path, model.shape, model.vocabulary, about, None)


def _of_run(located: Located) -> Source:
    from flows.config import load
    from model import weights
    from model.data import tokenizer as tokenizers
    from model.export.about import About as Statement
    from tasks.convert import statement
    from tasks.runs.record import read_built

    if located.tokens is None:
        raise KodaError(f"{located.name} has weights without a tokenizer, and is not in a run that has one.")
    if located.path.parent.name == CHECKPOINTS:
        raise KodaError(
            f"{located.name} is a training's checkpoint: the checkpoint stage makes weights of its last one."
        )
    run = located.tokens.parent
    about, tokens = load("", run=run).about, read_built(run, "tokenize")
    taught = read_built(run, "sft") if located.path.parent.name in ("sft", "extend") else None
    if tokens is None:  # of another version, whose record says less
        stated = Statement(run.name, about.author, about.license, about.url)
    else:
        stated = statement(about, taught, tokens)
    vocabulary = tokenizers.load(str(located.tokens / "tokenizer.json"))
    return Source(located.path, weights.config(located.path), vocabulary, stated, run)


def settings(formats: list[str], types: list[str]) -> "Convert":
    """The settings of the convert stage for these formats and number types.

    Raises KodaError for a format or a type that is not known, and for a type of a format that is not written.
    """
    from model.export.formats import FORMATS
    from tasks.convert import Convert

    if unknown := [name for name in formats if name not in FORMATS]:
        raise KodaError(f"--to {unknown[0]}: the formats are {', '.join(FORMATS)}.")
    by_format = {name: [type_ for type_ in types if type_ in FORMATS[name].variants] for name in formats}
    known = [type_ for name in formats for type_ in FORMATS[name].variants]
    if unknown := [type_ for type_ in types if type_ not in known]:
        raise KodaError(f"--quant {unknown[0]}: {', '.join(formats)} have {', '.join(known)}.")
    chosen: dict[str, Any] = {"formats": formats}
    chosen |= {name: by_format[name] for name in ("gguf", "mlx") if by_format.get(name)}
    if by_format.get("hf"):
        chosen["hf_dtype"] = by_format["hf"][0]
    return Convert.model_validate(chosen)


def read_text(path: Path) -> str:
    """A text file. Raises KodaError where it is not."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise KodaError(f"--calibrate {path}: cannot be read as UTF-8 text: {error}") from None


def convert(source: Source, out: Path, chosen: "Convert", text: str | None = None) -> "dict[str, ParityFigures]":
    """Write the exports to `out`, which gets its name once each agrees with the model in its own runtime.

    They are calibrated on `text`; without it, a run's on its training text.
    """
    from model.data import docs
    from model.export.formats.format import LEFT_OUT
    from tasks.convert import export
    from tasks.supervise import call

    building = out.with_name(f".{out.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    beside = building / BESIDE
    log = beside / "convert.log"
    if source.run is None:
        weights = trained = beside / "weights"
        heldout = beside / "heldout"
        path = str(source.path.absolute())
        call("model.export.adopt:adopt", log, PretrainFigures, source=path, tokenizer=path, out=weights)
        shards = None
        tokenized(heldout, source.vocabulary, "\n\n".join(topic.text for topic in docs.topics())[:COMPARED])
    else:
        weights, heldout, shards = source.path, source.run / "tokenize/heldout", source.run / "tokenize/train"
        before = source.run / "sft/weights"  # what extend made it of, with the old context
        trained = before if weights == source.run / "extend/weights" and before.is_dir() else weights
    if text is not None:
        shards = beside / "text"
        tokenized(shards, source.vocabulary, text)
    source.vocabulary.save(beside)
    parity = export(
        building,
        chosen,
        weights=weights,
        tokenizer=beside / "tokenizer.json",
        heldout=heldout,
        text=shards,
        trained=trained,
        log=log,
        about=source.about._asdict(),
    )
    print("".join(line for line in log.read_text(errors="replace").splitlines(True) if LEFT_OUT in line), end="")
    shutil.rmtree(beside)
    building.rename(out)
    return parity


def tokenized(folder: Path, vocabulary: "Vocabulary", text: str) -> None:
    """A text as token shards, as a model reads it from its beginning."""
    from model.data.shards import ShardWriter

    tokens = [*vocabulary.special.beginning, *vocabulary.plain(text)]
    writer = ShardWriter(folder, vocabulary.size, len(tokens))
    writer.add(tokens)
    writer.close()


def as_lines(out: Path, parity: "dict[str, ParityFigures]") -> list[str]:
    """What was written, and how near it is to the model."""
    from tasks.reports.tables import PARITY, of_each

    columns = ("KL divergence, nats", "perplexity ratio", "equal greedy tokens of 64")
    table = of_each("export", {str(out / path): figures for path, figures in parity.items()}, PARITY, columns)
    return table.text()
