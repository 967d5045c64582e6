"""A model that others trained, looked at before any work is spent on it."""

from pathlib import Path
from typing import Any, NamedTuple

from model.config import LlamaConfig
from model.data import chat
from model.data import tokenizer as tokenizers
from model.data.vocabulary import Vocabulary
from model.errors import KodaError
from model.export.formats import hf
from model.files import in_file, read_object


class Original(NamedTuple):
    """What its files say."""

    path: Path
    shape: LlamaConfig
    vocabulary: Vocabulary
    dtype: str  # of the weights; float32 for what is quantised or of several types
    license: str  # empty: not stated
    languages: tuple[str, ...]
    repository: str  # where it was published, if that is known: USER/NAME


def read(path: Path, template: str = "own") -> Original:
    """The model in a Hugging Face folder or a GGUF file, without its weights; `template` as in `tokenize.template`.

    Raises KodaError for what Koda cannot represent or the exports could not carry, and for a folder whose tensors are
    not those of its config.json.
    """
    original = (_gguf if path.suffix == ".gguf" else _hf)(path)
    size, rows = original.vocabulary.size, original.shape.vocab_size
    if size > rows:
        raise KodaError(f"{path}: its tokenizer has {size} entries, its embedding {rows} rows.")
    with in_file(path):
        return original._replace(vocabulary=chat.with_template(original.vocabulary, template))


def _hf(folder: Path) -> Original:
    shape, dtype = hf.check(folder)
    card = _card(folder / "README.md")
    named = str(read_object(folder / "config.json").get("_name_or_path") or "")
    is_repository = named.count("/") == 1 and not named.startswith((".", "/", "~"))
    return Original(
        folder,
        shape,
        tokenizers.load(str(folder)),
        dtype,
        _license(card.get("license"), folder / "README.md"),
        _texts(card.get("language")),
        named if is_repository else "",
    )


def _gguf(path: Path) -> Original:
    from model.data import gguf_tokenizer
    from model.export import gguf_file  # here, because gguf-py and JAX take a second to import

    if not path.is_file():
        raise KodaError(f"{path} is not there.")
    reader = gguf_file.opened(path)

    def of(key: str) -> Any:
        return gguf_file.value(reader, f"general.{key}")

    url = str(of("base_model.0.repo_url") or of("source.repo_url") or of("repo_url") or "")
    return Original(
        path,
        gguf_file.read_shape(reader, path),
        gguf_tokenizer.read(reader, path),
        gguf_file.matrix_type(reader),
        str(of("license") or ""),
        _texts(of("languages")),
        url.removeprefix("https://huggingface.co/") if url.startswith("https://huggingface.co/") else "",
    )


def _texts(value: object) -> tuple[str, ...]:
    """One text or several; YAML reads the code of Norwegian as false."""
    values = value if isinstance(value, list) else [value]
    return tuple("no" if one is False else str(one) for one in values if one not in (None, ""))


def _license(value: object, path: Path) -> str:
    """Raises KodaError for several licences, of which Koda's cards have one."""
    names = _texts(value)
    if len(names) > 1:
        raise KodaError(f"{path}: it names several licences ({', '.join(names)}). Leave that of the weights there.")
    return "".join(names)


def _card(path: Path) -> dict[str, Any]:
    """The metadata of a model card; nothing for one that cannot be read as such."""
    from huggingface_hub import RepoCard

    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")  # YAML refuses what is not UTF-8 itself
    try:
        return RepoCard(text).data.to_dict() if text.lstrip().startswith("---") else {}
    except Exception:  # whatever a YAML parser raises: a card is not needed to read a model
        return {}
