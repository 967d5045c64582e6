"""The special tokens of a vocabulary: what begins a text, what ends a document and an answer; and the chat template."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from model.errors import KodaError
from model.files import read_field, read_object, read_text

END_OF_TEXT = "<|endoftext|>"
CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer_config.json"
MAP, ADDED, TEMPLATE = "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"
CURE = "In that folder, transformers' AutoTokenizer.from_pretrained('.').save_pretrained('.') writes tokenizer.json."


@dataclass(frozen=True, kw_only=True)
class Special:
    """Token ids by what they are for."""

    end: int  # ends every document
    stops: tuple[int, ...]  # any of them ends an answer; the first is what templates call `eos_token`
    bos: int | None = None
    begins: bool = False  # every text begins with `bos`
    pad: int | None = None
    unknown: int | None = None
    template: str = ""  # Jinja; empty: Koda's (model/data/chat.py)

    @property
    def prefix(self) -> int:
        """The token in place of an empty context."""
        return (*self.beginning, self.end)[0]

    @property
    def beginning(self) -> list[int]:
        """What every text begins with."""
        return [self.bos] if self.begins and self.bos is not None else []


def koda(tokenizer: Tokenizer, where: str) -> Special:
    """Those of a vocabulary that is GPT-2's or was trained here: one token for everything.

    Raises KodaError where it has no `<|endoftext|>`.
    """
    end = tokenizer.token_to_id(END_OF_TEXT)
    if end is None:
        raise KodaError(
            f"{where} has no {END_OF_TEXT} entry, which ends every document, and no config.json beside it that names "
            "another."
        )
    return Special(end=end, stops=(end,), bos=end, pad=end, unknown=end)


def files(folder: Path) -> list[Path]:
    """The files of a Hugging Face folder that decide its special tokens, beside the tokenizer itself.

    As in transformers, the older special_tokens_map.json counts where tokenizer_config.json does not list its tokens.
    """
    older = () if "added_tokens_decoder" in _optional(folder / TOKENIZER) else (MAP,)
    names = (CONFIG, GENERATION, TOKENIZER, *older, TEMPLATE)
    return [path for name in names if (path := folder / name).is_file()]


def _named(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, with what the older file has."""
    older = folder / MAP
    return _optional(folder / TOKENIZER) | (read_object(older) if older in files(folder) else {})


def _text(token: object) -> object:
    """How a token is spelled that is written as its text, or with its properties."""
    return token.get("content", token) if isinstance(token, dict) else token


def check_pair(folder: Path) -> None:
    """Raise KodaError where a file beside vocab.json and merges.txt makes them another tokenizer than GPT-2's."""
    named, where = _named(folder), folder / TOKENIZER
    listed = read_field(named, "added_tokens_decoder", dict, where, {}).values()
    further = read_field(named, "additional_special_tokens", list, where, None) or []
    roles = [named.get(f"{role}_token") for role in ("bos", "eos", "pad", "unk")]
    others = [text for text in map(_text, (*listed, *further, *roles)) if text not in (None, END_OF_TEXT)]
    if (name := named.get("tokenizer_class") or "GPT2Tokenizer") not in ("GPT2Tokenizer", "GPT2TokenizerFast"):
        others.append(f"tokenizer_class = {name}")
    others += [name for name in ("add_prefix_space", "add_bos_token") if named.get(name)]
    if added := _optional(folder / ADDED):
        where, others = folder / ADDED, [*added]
    if others:
        raise KodaError(f"{where}: {others[0]} cannot be read with vocab.json and merges.txt. {CURE}")


def known(token: object, tokens: Collection[int], field: str) -> int:
    """A token's number. Raises KodaError, by the field that has it, where it is not one of these."""
    if type(token) is not int or token not in tokens:
        raise KodaError(f"{field} = {token!r:.80} is not a token of the tokenizer.")
    return token


def from_hf(folder: Path, raw: dict[str, Any], tokenizer: Tokenizer) -> Special:
    """Those that the files of a Hugging Face folder name, `raw` being its tokenizer.json.

    What a text begins with is what the post-processor adds, or the class of a tokenizer without one. Raises KodaError
    where nothing ends an answer, where a token is not in the tokenizer, and where the post-processor adds other tokens.
    """
    config, generation, named = _optional(folder / CONFIG), _optional(folder / GENERATION), _named(folder)
    tokens = set(tokenizer.get_vocab().values())
    for number, token in read_field(named, "added_tokens_decoder", dict, folder / TOKENIZER, {}).items():
        if str(tokenizer.token_to_id(str(_text(token)))) != number:
            raise KodaError(f"{folder / TOKENIZER}: its token {number}, {_text(token)!r}, is not in the tokenizer.")

    def by_text(role: str) -> int | None:
        text = _text(named.get(f"{role}_token"))
        token = tokenizer.token_to_id(text) if isinstance(text, str) else None
        if text is not None and token is None and role in ("bos", "eos"):
            raise KodaError(f"{folder}: {role}_token = {text!r:.80} of {TOKENIZER} or {MAP} is not in the tokenizer.")
        return token

    def by_number(file: str, raw: dict[str, Any], role: str) -> list[int]:
        """One token, or several; a negative number is none."""
        value, field = raw.get(f"{role}_token_id"), f"{folder / file}: {role}_token_id"
        numbers = value if isinstance(value, list) else [] if value is None else [value]
        return [known(number, tokens, field) for number in numbers if not (type(number) is int and number < 0)]

    def one(role: str) -> int | None:
        text = by_text(role)
        return text if text is not None else next(iter(by_number(CONFIG, config, role)), None)

    first = _first_added(raw, str(folder / "tokenizer.json"))
    by_class = str(named.get("tokenizer_class", "")).startswith("LlamaTokenizer") and named.get("add_bos_token")
    listed = [*by_number(CONFIG, config, "eos"), *by_number(GENERATION, generation, "eos")]
    answer_end = by_text("eos")
    stops = tuple(dict.fromkeys([*([answer_end] if answer_end is not None else []), *listed]))
    if not stops:
        if tokenizer.token_to_id(END_OF_TEXT) is not None and not named.get("chat_template"):
            return koda(tokenizer, str(folder))
        raise KodaError(
            f"{folder}: neither config.json nor tokenizer_config.json names a token that ends a text (eos)."
        )
    bos = one("bos") if first is None else known(first, tokens, f"{folder / 'tokenizer.json'}: post_processor")
    return Special(
        end=listed[0] if listed else stops[0],
        stops=stops,
        bos=bos,
        begins=first is not None or bool(by_class and bos is not None),
        pad=one("pad"),
        unknown=one("unk"),
        template=_template(folder, named),
    )


def _optional(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}


def _first_added(raw: dict[str, Any], where: str) -> int | None:
    """The token that the post-processor puts before a text. Raises KodaError where it adds any other."""
    post = raw["post_processor"]
    parts = post["processors"] if post and post["type"] == "Sequence" else [post] if post else []
    first = None
    for part in parts:
        if part["type"] == "ByteLevel":
            continue
        single = part.get("single") if part["type"] == "TemplateProcessing" else None
        tokens = {name: token["ids"] for name, token in part.get("special_tokens", {}).items()}
        match single:
            case [{"Sequence": {"id": "A"}}]:
                pass
            case [{"SpecialToken": {"id": name}}, {"Sequence": {"id": "A"}}] if len(tokens.get(name, ())) == 1:
                (first,) = tokens[name]
            case _:
                what = json.dumps(single, ensure_ascii=False) if single else part["type"]
                raise KodaError(
                    f"{where}: the post_processor {what} is not one that Koda's exports can carry: none, or one token "
                    "before a text."
                )
    return first


def _template(folder: Path, named: dict[str, Any]) -> str:
    """The chat template: a file of its own, or the one in tokenizer_config.json that is called `default`."""
    if (folder / TEMPLATE).is_file():
        return read_text(folder / TEMPLATE)
    template = named.get("chat_template") or []
    for one in template if isinstance(template, list) else [{"name": "default", "template": template}]:
        match one:
            case {"name": "default", "template": str(text)}:
                return text
            case {"name": str(), "template": str()}:
                pass
            case _:
                raise KodaError(
                    f"{folder / TOKENIZER}: chat_template is neither text nor a list of `name` and `template`."
                )
    return ""
