"""The tokenizers that Koda carries into every export, recognised by the structure of their tokenizer.json.

llama.cpp knows a pre-tokenizer by a name, and not by its regular expressions: any other than the right one splits about
a tenth of all strings differently. So a tokenizer is one of these forms, or it is refused by what differs.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from tokenizers import Regex, decoders, normalizers, pre_tokenizers

from model.errors import KodaError
from model.files import read_field


class Family(NamedTuple):
    """A form of byte-pair encoding, in the words of GGUF's metadata."""

    model: str  # tokenizer.ggml.model: `gpt2` for byte-level BPE, `llama` for SentencePiece's
    pre: str  # tokenizer.ggml.pre
    space_prefix: bool | None = None  # of SentencePiece: is a text encoded as if a space preceded it?


SPACE = "▁"  # what SentencePiece writes for a space
BYTE = re.compile("<0x[0-9A-F]{2}>")  # SentencePiece's tokens for bytes that are in no other token
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
DEEPSEEK_CODER_SPLITS = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")
# The steps of a byte-level pre-tokenizer, as `_steps` names them, and llama.cpp's name of them all together.
GPT2, SMOLLM, LLAMA3, LLAMA3_MERGED, DEEPSEEK_CODER = "gpt-2", "smollm", "llama-bpe", "dbrx", "deepseek-coder"
STEPS: dict[str, tuple[str, ...]] = {
    GPT2: ("ByteLevel(use_regex)",),
    SMOLLM: ("Digits", "ByteLevel(use_regex)"),
    LLAMA3: (LLAMA3_SPLIT, "ByteLevel"),
    LLAMA3_MERGED: (LLAMA3_SPLIT, "ByteLevel"),
    DEEPSEEK_CODER: (*DEEPSEEK_CODER_SPLITS, "Digits", "ByteLevel"),
}
# In these a word that is an entry of the vocabulary is that entry, whatever the merges make of it.
IGNORE_MERGES = {LLAMA3}


def _refusal(where: str, what: object) -> KodaError:
    return KodaError(
        f"{where}: {what} is not in a tokenizer that the exports can carry: byte-level BPE as GPT-2's, SmolLM's, "
        "Llama 3's or DeepSeek-Coder's, or SentencePiece BPE as Llama 2's."
    )


@contextmanager
def parsing(where: object) -> Iterator[None]:
    """Raises KodaError where `tokenizers` cannot build a tokenizer from what the file `where` has."""
    try:
        yield
    except BaseException as error:  # a panic in Rust is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise KodaError(f"{where} cannot be read as a tokenizer: {error}") from None


def check_model(raw: dict[str, Any], where: str) -> None:
    """Raise KodaError for a tokenizer.json with another model than plain BPE: `tokenizers` panics at some of these."""
    model = read_field(raw, "model", dict, where, {})
    if model.get("type") != "BPE":
        raise _refusal(where, f"a model of type {model.get('type')}")
    if model.get("dropout"):
        raise KodaError(f"{where}: dropout = {model['dropout']} would encode a text differently each time. Remove it.")
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise _refusal(where, f"{name} = {model[name]!r}")


def family(raw: dict[str, Any], where: str) -> Family:
    """The form of a tokenizer.json that `tokenizers` reads. Raises KodaError, by what differs, for one that no export
    could carry."""
    for token in raw.get("added_tokens", ()):
        for name in ("lstrip", "rstrip", "single_word"):
            if token[name]:
                raise _refusal(where, f"the added token {token['content']!r} with {name}")
    form = _form(raw, where)
    actual, usual = raw["decoder"] or {}, json.loads(decoder(form).__getstate__())
    if usual["type"] == "ByteLevel":  # its settings change nothing in decoding
        actual, usual = actual.get("type"), "ByteLevel"
    if actual != usual:
        raise _refusal(where, f"the decoder {json.dumps(raw['decoder'], ensure_ascii=False)}")
    return form


def _form(raw: dict[str, Any], where: str) -> Family:
    model, normalizer, names = raw["model"], _normalizer(raw["normalizer"]), _steps(raw["pre_tokenizer"])
    if model.get("byte_fallback"):
        return _sentencepiece(raw, normalizer, names, where)
    if normalizer:
        raise _refusal(where, f"the normalizer {' + '.join(normalizer)}")
    skips = bool(model.get("ignore_merges"))
    for pre, steps in STEPS.items():
        if names == steps and skips == (pre in IGNORE_MERGES):
            return Family("gpt2", pre)
    raise _refusal(where, f"the pre-tokenizer {' + '.join(names) or 'None'}{' with ignore_merges' * skips}")


def _sentencepiece(raw: dict[str, Any], normalizer: tuple[str, ...], names: tuple[str, ...], where: str) -> Family:
    if normalizer == ("Prepend", "Replace") and not names:
        form = Family("llama", "default", True)
    elif (normalizer == ("Replace",) and not names) or (not normalizer and names == ("Metaspace(never)",)):
        form = Family("llama", "default", False)
    else:
        # Metaspace adds no space before a text that begins with one, or after a special token; llama.cpp does.
        raise _refusal(where, f"the pre-tokenizer {' + '.join((*normalizer, *names)) or 'None'} with byte_fallback")
    added = {token["content"]: token for token in raw.get("added_tokens", ())}
    if loose := [text for text, token in added.items() if token["special"] and token["normalized"]]:
        raise _refusal(where, f"the special token {loose[0]!r} with normalized = true")
    made = {left + right for left, right in map(pair, raw["model"]["merges"])}
    unmade = [token for token in raw["model"]["vocab"] if len(token) > 1 and token not in made and token not in added]
    if lost := [token for token in unmade if not BYTE.fullmatch(token)]:
        raise _refusal(where, f"the token {lost[0]!r} (of {len(lost)}), which no merge makes but SentencePiece would,")
    return form


def _normalizer(raw: dict[str, Any] | None) -> tuple[str, ...]:
    """The kinds of its steps; one with other numbers than SentencePiece's counts as another kind."""
    parts = raw["normalizers"] if raw and raw["type"] == "Sequence" else [raw] if raw else []
    usual = {
        ("Prepend", SPACE, None, None): "Prepend",
        ("Replace", None, " ", SPACE): "Replace",
    }
    return tuple(
        usual.get(
            (part["type"], part.get("prepend"), (part.get("pattern") or {}).get("String"), part.get("content")),
            json.dumps(part, ensure_ascii=False),
        )
        for part in parts
    )


def _steps(raw: dict[str, Any] | None) -> tuple[str, ...]:
    """The steps of a pre-tokenizer: a regular expression for its own text, else a name."""
    parts = raw["pretokenizers"] if raw and raw["type"] == "Sequence" else [raw] if raw else []
    return tuple(map(_step, parts))


def _step(part: dict[str, Any]) -> str:
    match part:
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            return pattern
        case {"type": "Digits", "individual_digits": True}:
            return "Digits"
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return "ByteLevel(use_regex)" if part.get("use_regex", True) else "ByteLevel"
        case {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}:
            return f"Metaspace({scheme})"
    return json.dumps(part, ensure_ascii=False)


def pair(merge: str | list[str]) -> tuple[str, str]:
    """The two parts of a merge, which files before tokenizers 0.20 write as one string."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def pre_tokenizer(pre: str) -> pre_tokenizers.PreTokenizer:
    """The byte-level pre-tokenizer that llama.cpp calls `pre`."""
    steps: list[Any] = []
    for step in STEPS[pre]:
        if step == "Digits":
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        elif step.startswith("ByteLevel"):
            steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=step != "ByteLevel"))
        else:
            steps.append(pre_tokenizers.Split(Regex(step), "isolated"))
    return steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)


def decoder(form: Family) -> decoders.Decoder:
    """What makes text of the tokens of this form."""
    if form.model == "gpt2":
        return decoders.ByteLevel()
    strip = [decoders.Strip(" ", 1, 0)] if form.space_prefix else []
    return decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])


def sentencepiece_normalizer(space_prefix: bool) -> normalizers.Normalizer:
    """SentencePiece's treatment of spaces."""
    replace = normalizers.Replace(" ", SPACE)
    return normalizers.Sequence([normalizers.Prepend(SPACE), replace]) if space_prefix else replace
