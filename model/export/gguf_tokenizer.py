"""The tokenizer inside a GGUF file: GPT-2's byte-level BPE, with its template and its special tokens."""

import json
from pathlib import Path

from gguf import GGUFReader, GGUFWriter, TokenType
from tokenizers import AddedToken, Tokenizer, models

from model.data.chat import TEMPLATE
from model.data.tokenizer import END_OF_TEXT, gpt2_form
from model.errors import KodaError


def add(writer: GGUFWriter, file: Path, rows: int) -> None:
    """GPT-2's byte-level BPE, by name: any other pre-tokenizer splits about a tenth of strings differently.

    `rows` are those of the embedding: where it has more than the vocabulary, the rest is marked as never used.
    """
    raw = json.loads(file.read_text(encoding="utf-8"))
    special = {token["content"] for token in raw["added_tokens"] if token["special"]}
    vocabulary = {**raw["model"]["vocab"], **{token["content"]: token["id"] for token in raw["added_tokens"]}}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    types = [TokenType.CONTROL if token in special else TokenType.NORMAL for token in tokens]
    filling = [f"[PAD{number}]" for number in range(len(tokens), rows)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*tokens, *filling])
    writer.add_token_types([*types, *[TokenType.UNUSED] * len(filling)])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in raw["model"]["merges"]])
    end = vocabulary[END_OF_TEXT]
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_pad_token_id(end)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(TEMPLATE)


def read(reader: GGUFReader, path: Path) -> Tokenizer:
    """The tokenizer of a file. Raises KodaError for any but GPT-2's form."""

    def of(key: str) -> object:
        field = reader.get_field(f"tokenizer.ggml.{key}")
        return field.contents() if field is not None else None

    kind, splitter = of("model"), of("pre")
    if kind != "gpt2" or splitter != "gpt-2":
        raise KodaError(f"{path}: its tokenizer is {kind!r} with pre-tokenizer {splitter!r}; Koda reads GPT-2's form.")
    tokens, types, merges = list(of("tokens")), list(of("token_type")), list(of("merges"))  # type: ignore[call-overload]
    vocabulary = {token: number for number, token in enumerate(tokens) if types[number] != TokenType.UNUSED}
    tokenizer = gpt2_form(models.BPE(vocabulary, [tuple(merge.split(" ")) for merge in merges]))
    special = [token for token, type_ in zip(tokens, types, strict=True) if type_ == TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return tokenizer
