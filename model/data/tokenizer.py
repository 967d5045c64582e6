"""Where a vocabulary comes from: trained here, loaded from files, or GPT-2's own (Radford et al. 2019)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

from model.data import gguf_tokenizer, special
from model.data.families import GPT2, Family, check_model, decoder, family, parsing, pre_tokenizer
from model.data.special import END_OF_TEXT, Special
from model.data.vocabulary import FILE, SPECIAL, Vocabulary, begin_with
from model.errors import KodaError
from model.files import read_object, sha256

REPOSITORY = "openai-community/gpt2"
GPT2_FILES = {  # and the sha256 of the files that OpenAI published
    "vocab.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "merges.txt": "ac33235097fe06d4a8fff0feac994644809e6eb6ab70669e1e9fd40ae032428e",
}
PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")  # of a tokenizer.json, beside model and tokens


def train(texts: Iterator[str], vocab_size: int) -> Vocabulary:
    """Learn a vocabulary of `vocab_size` entries; the first is `<|endoftext|>`."""
    tokenizer = gpt2_form(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return Vocabulary(tokenizer, special.koda(tokenizer, "the trained vocabulary"), Family("gpt2", GPT2))


def fingerprint(source: str) -> str:
    """The hashes of the files that `load` would read; empty for `train`. Raises KodaError where there are none."""
    if source == "train":
        return ""
    if source == "gpt2":
        return " ".join(GPT2_FILES.values())
    files = _files(source)
    beside = special.files(Path(source)) if Path(source).is_dir() else []
    return " ".join(map(sha256, [*files, *beside]))


def _gpt2_files() -> tuple[Path, ...]:
    """GPT-2's own vocabulary from the Hub, or from the cache of an earlier download.

    Raises KodaError where it cannot be fetched or differs from the published files.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    paths = []
    for name, expected in GPT2_FILES.items():
        try:
            path = Path(hf_hub_download(REPOSITORY, name, etag_timeout=10))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise KodaError(
                f"tokenize.tokenizer = 'gpt2': {name} of {REPOSITORY} cannot be fetched ({type(error).__name__}). On a "
                f"machine with a network, run `hf download {REPOSITORY} {' '.join(GPT2_FILES)} --local-dir FOLDER`; "
                "then set tokenize.tokenizer=FOLDER here."
            ) from None
        if sha256(path) != expected:
            raise KodaError(f"{path} is not the {name} that was published with GPT-2. Remove it and download it again.")
        paths.append(path)
    return tuple(paths)


def _files(source: str) -> tuple[Path, ...]:
    if source == "gpt2":
        return _gpt2_files()
    path = Path(source)
    pair = path / "vocab.json", path / "merges.txt"
    file = path / FILE if path.is_dir() else path
    if not file.is_file() and all(part.is_file() for part in pair):
        return pair
    if not file.is_file():
        if (path / "tokenizer.model").is_file():
            raise KodaError(f"{path} has no tokenizer.json, and tokenizer.model alone is not read. {special.CURE}")
        raise KodaError(
            f"tokenize.tokenizer = {source!r}: no tokenizer there. Use `train`, `gpt2`, a tokenizer.json, a .gguf "
            "file, or a folder with tokenizer.json or with vocab.json and merges.txt."
        )
    return (file,)


def load(source: str) -> Vocabulary:
    """`gpt2`, a `tokenizer.json`, a Hugging Face folder, a GGUF file, or a folder with GPT-2's `vocab.json` and
    `merges.txt` and no tokenizer.json.

    Raises KodaError for anything else, and for one that the exports could not carry (model/data/families.py).
    """
    first, *second = _files(source)
    if second:
        return _read_pair(first, second[0], published=source == "gpt2")
    if first.suffix == ".gguf":
        return gguf_tokenizer.read_file(first)
    return _read(first, folder=Path(source).is_dir())


def _read(file: Path, folder: bool) -> Vocabulary:
    """A tokenizer.json. In a run a file beside it has its special tokens; in a `folder`, Hugging Face's files do."""
    raw = read_object(file)
    check_model(raw, str(file))
    changed = bool(raw.get("truncation") or raw.get("padding"))  # a program that used them may have left them on
    with parsing(file):
        tokenizer = Tokenizer.from_str(json.dumps({**raw, "truncation": None, "padding": None}))
    raw |= _parts(tokenizer)
    form = family(raw, str(file))
    if (file.parent / SPECIAL).is_file():
        named = read_object(file.parent / SPECIAL)
        tokens = Special(**{**named, "stops": tuple(named["stops"])})
    elif folder:
        tokens = special.from_hf(file.parent, raw, tokenizer)
    else:
        tokens = special.koda(tokenizer, str(file))
    if tokens.begins and not tokenizer.encode("").ids:
        begin_with(tokenizer, tokens.prefix)  # where only older classes of transformers would
        changed = True
    return Vocabulary(tokenizer, tokens, form, "" if changed else file.read_text(encoding="utf-8"))


def _parts(tokenizer: Tokenizer) -> dict[str, Any]:
    """The PARTS of a tokenizer as `tokenizers` writes them: each with all its fields."""
    parts = {name: getattr(tokenizer, name) for name in PARTS}
    return {name: part and json.loads(part.__getstate__()) for name, part in parts.items()}


def _read_pair(vocabulary: Path, merges: Path, published: bool) -> Vocabulary:
    """A vocab.json and a merges.txt. Files beside those that are not GPT-2's, as `published`, name special tokens."""
    with parsing(f"{vocabulary} with {merges.name}"):
        tokenizer = gpt2_form(models.BPE.from_file(str(vocabulary), str(merges)))
    if published:
        tokens = special.koda(tokenizer, str(vocabulary))
    else:
        special.check_pair(vocabulary.parent)
        tokens = special.from_hf(vocabulary.parent, _parts(tokenizer), tokenizer)
    if tokenizer.token_to_id(END_OF_TEXT) is not None:
        tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    return Vocabulary(tokenizer, tokens, Family("gpt2", GPT2))


def gpt2_form(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer(GPT2)
    tokenizer.decoder = decoder(Family("gpt2", GPT2))
    return tokenizer
