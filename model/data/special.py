"""The special tokens of a vocabulary: what begins a text, what ends a document and an answer; and the chat template."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from model.errors import KodaError
from model.files import read_json

END_OF_TEXT = "<|endoftext|>"


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


def from_hf(folder: Path, raw: dict[str, Any], tokenizer: Tokenizer) -> Special:
    """Those that the files of a Hugging Face folder name, `raw` being its tokenizer.json.

    What a text begins with is what the post-processor adds, or the class of a tokenizer without one. Raises KodaError
    where nothing ends an answer, and where the post-processor adds other tokens.
    """
    config, generation, named = (
        _optional(folder / name) for name in ("config.json", "generation_config.json", "tokenizer_config.json")
    )

    def by_text(role: str) -> int | None:
        token = named.get(f"{role}_token")
        text = token.get("content") if isinstance(token, dict) else token
        return None if text is None else tokenizer.token_to_id(text)

    def one(role: str) -> int | None:
        text = by_text(role)
        return text if text is not None else next(iter(_ids(config.get(f"{role}_token_id"))), None)

    first = _first_added(raw, str(folder / "tokenizer.json"))
    by_class = str(named.get("tokenizer_class", "")).startswith("LlamaTokenizer") and named.get("add_bos_token")
    listed = [*_ids(config.get("eos_token_id")), *_ids(generation.get("eos_token_id"))]
    answer_end = by_text("eos")
    stops = tuple(dict.fromkeys([*([answer_end] if answer_end is not None else []), *listed]))
    if not stops:
        if tokenizer.token_to_id(END_OF_TEXT) is not None and not named.get("chat_template"):
            return koda(tokenizer, str(folder))
        raise KodaError(
            f"{folder}: neither config.json nor tokenizer_config.json names a token that ends a text (eos)."
        )
    bos = first if first is not None else one("bos")
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
    return read_json(path) if path.is_file() else {}


def _ids(value: int | list[int] | None) -> list[int]:
    """A config.json's token, or several; a negative one is none."""
    return [token for token in (value if isinstance(value, list) else [value]) if token is not None and token >= 0]


def _first_added(raw: dict[str, Any], where: str) -> int | None:
    """The token that the post-processor puts before a text. Raises KodaError where it adds any other."""
    post = raw.get("post_processor")
    parts = post["processors"] if post and post["type"] == "Sequence" else [post] if post else []
    first = None
    for part in parts:
        if part["type"] == "ByteLevel":
            continue
        single = part.get("single") if part["type"] == "TemplateProcessing" else None
        match single:
            case [{"Sequence": _}]:
                pass
            case [{"SpecialToken": {"id": name}}, {"Sequence": _}]:
                (first,) = part["special_tokens"][name]["ids"]
            case _:
                what = json.dumps(single, ensure_ascii=False) if single else part["type"]
                raise KodaError(
                    f"{where}: the post_processor {what} is not one that Koda's exports can carry: none, or one token "
                    "before a text."
                )
    return first


def _template(folder: Path, named: dict[str, Any]) -> str:
    """The chat template: a file of its own, or the one in tokenizer_config.json that is called `default`."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = named.get("chat_template") or ""
    if isinstance(template, list):
        return next((one["template"] for one in template if one["name"] == "default"), "")
    return template
