"""The tokenizer inside a GGUF file, with its chat template and its special tokens
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#ggml)."""

import json
from pathlib import Path
from typing import Any

from gguf import GGUFReader, GGUFWriter, TokenType
from tokenizers import AddedToken, Tokenizer, models

from model.data.families import (
    BYTE,
    IGNORE_MERGES,
    SPACE,
    STEPS,
    Family,
    decoder,
    pair,
    parsing,
    pre_tokenizer,
    sentencepiece_normalizer,
)
from model.data.special import Special, known
from model.data.vocabulary import Vocabulary, begin_with
from model.errors import KodaError
from model.files import read_field

UNSCORED = -1e9  # of a row that is no token
# Names under which llama.cpp looks for further tokens that end an answer, beside `eos`.
FURTHER_ENDS = ("eot", "eom")


def add(writer: GGUFWriter, vocabulary: Vocabulary, rows: int, template: str) -> None:
    """Write it as metadata. Where the embedding has more `rows` than the vocabulary, the rest is marked as never used.

    Raises KodaError for a text that two tokens would share.
    """
    raw = json.loads(vocabulary.tokenizer.to_str())
    model, pre, space_prefix = vocabulary.family
    bpe, added = raw["model"], {token["id"]: token for token in raw["added_tokens"]}
    by_id = {number: text for text, number in bpe["vocab"].items()}
    by_id |= {number: token["content"] for number, token in added.items()}
    texts, types = [], []
    for number in range(rows):
        text, type_ = by_id.get(number, f"[PAD{number}]"), TokenType.NORMAL
        if number not in by_id:
            type_ = TokenType.UNUSED
        elif number in added:
            # One that is not special is matched in plain text too, by llama.cpp as by `tokenizers`.
            type_ = TokenType.CONTROL if added[number]["special"] else TokenType.USER_DEFINED
        if model == "llama":
            if type_ == TokenType.NORMAL and BYTE.fullmatch(text):
                type_ = TokenType.BYTE
            if text == bpe.get("unk_token"):
                type_ = TokenType.UNKNOWN
            if type_ == TokenType.USER_DEFINED:
                text = text.replace(SPACE, " ")
        texts.append(text)
        types.append(type_)
    if len(set(texts)) < len(texts):
        twice = next(text for text in texts if texts.count(text) > 1)
        raise KodaError(f"two tokens of the vocabulary are spelled {twice!r}, which llama.cpp does not load.")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(texts)
    writer.add_token_types(types)
    merges = [" ".join(pair(merge)) for merge in bpe["merges"]]
    if model == "llama":
        writer.add_token_scores(_scores([by_id.get(number) for number in range(rows)], merges))
        writer.add_add_space_prefix(bool(space_prefix))
    else:
        writer.add_token_merges(merges)
    special = vocabulary.special
    for token, add_id in (
        (special.bos, writer.add_bos_token_id),
        (special.stops[0], writer.add_eos_token_id),
        (special.pad, writer.add_pad_token_id),
        (special.unknown if model == "llama" else None, writer.add_unk_token_id),
        *zip(special.stops[1:], (writer.add_eot_token_id, writer.add_eom_token_id), strict=False),
    ):
        if token is not None:
            add_id(token)
    writer.add_add_bos_token(special.begins)  # both are written always: llama.cpp's default depends on the form
    writer.add_add_eos_token(False)
    writer.add_chat_template(template)


def _scores(texts: list[str | None], merges: list[str]) -> list[float]:
    """llama.cpp merges the pair whose result scores best: a token's score is the place of the merge that makes it."""
    place: dict[str, int] = {}
    for number, merge in enumerate(merges):
        place.setdefault(merge.replace(" ", "", 1), number)
    return [UNSCORED if text is None else -float(place.get(text, len(merges))) for text in texts]


def read_file(path: Path) -> Vocabulary:
    """The vocabulary of a GGUF file. Raises KodaError for one that is no GGUF."""
    try:
        return read(GGUFReader(path), path)
    except (ValueError, OSError, IndexError) as error:
        raise KodaError(f"{path} cannot be read as GGUF: {error}") from None


def read(reader: GGUFReader, path: Path) -> Vocabulary:
    """The vocabulary of an open file. Raises KodaError for a form that Koda does not know."""
    metadata = {name: field.contents() for name, field in reader.fields.items() if name.startswith("tokenizer.")}

    def of(key: str, kind: type, default: Any = ...) -> Any:
        return read_field(metadata, f"tokenizer.{key}", kind, path, default)

    model, pre = of("ggml.model", str), of("ggml.pre", str, "default")
    space_prefix = of("ggml.add_space_prefix", bool, True)
    texts, types = of("ggml.tokens", list), of("ggml.token_type", list)
    tokens = dict(zip(texts, range(len(texts)), strict=True))
    if len({len(texts), len(types), len(tokens)}) > 1:
        raise KodaError(
            f"{path}: {len(texts)} tokens of {len(tokens)} spellings and {len(types)} types; all must be as many."
        )
    used = {text: number for text, number in tokens.items() if types[number] != TokenType.UNUSED}
    if model == "llama":
        form = Family("llama", "default", space_prefix)
        scores = of("ggml.scores", list)
        with parsing(path):
            tokenizer = _sentencepiece(used, types, scores, form)
    elif model == "gpt2" and pre in STEPS:
        form = Family("gpt2", pre)
        merges = of("ggml.merges", list)
        with parsing(path):
            tokenizer = Tokenizer(models.BPE(used, [*map(pair, merges)], ignore_merges=pre in IGNORE_MERGES))
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer(pre), decoder(form)
    else:
        raise KodaError(
            f"{path}: its tokenizer is {model!r} with pre-tokenizer {pre!r}; Koda reads `llama`, and `gpt2` with "
            f"{', '.join(STEPS)}."
        )
    kinds = ((TokenType.CONTROL, True), (TokenType.UNKNOWN, True), (TokenType.USER_DEFINED, False))
    for kind, special in kinds:
        added = [AddedToken(text, special=special, normalized=False) for text in used if types[used[text]] == kind]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)

    def token(role: str) -> int | None:
        field = f"tokenizer.ggml.{role}_token_id"
        return known(metadata[field], used.values(), f"{path}: {field}") if field in metadata else None

    bos, begins = token("bos"), of("ggml.add_bos_token", bool, model == "llama" or pre in IGNORE_MERGES)
    listed = map(token, ("eos", *FURTHER_ENDS))
    stops = tuple(dict.fromkeys(number for number in listed if number is not None))
    if not stops:
        raise KodaError(f"{path} names no token that ends a text (tokenizer.ggml.eos_token_id).")
    if begins := begins and bos is not None:
        begin_with(tokenizer, bos)
    special_tokens = Special(
        end=stops[0],
        stops=stops,
        bos=bos,
        begins=begins,
        pad=token("padding"),
        unknown=token("unknown"),
        template=of("chat_template", str, ""),
    )
    return Vocabulary(tokenizer, special_tokens, form)


def _sentencepiece(used: dict[str, int], types: list[int], scores: list[float], form: Family) -> Tokenizer:
    """BPE from SentencePiece's scores: every pair of tokens whose text is a token is a merge, the best score first."""
    normal = {text: number for text, number in used.items() if types[number] == TokenType.NORMAL}
    merges = [
        (-scores[number], normal[text[:cut]], normal[text[cut:]], text[:cut], text[cut:])
        for text, number in normal.items()
        for cut in range(1, len(text))
        if text[:cut] in normal and text[cut:] in normal
    ]
    unknown = next((text for text, number in used.items() if types[number] == TokenType.UNKNOWN), None)
    bpe = models.BPE(
        used,
        [(left, right) for *_, left, right in sorted(merges)],
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer, tokenizer.decoder = sentencepiece_normalizer(bool(form.space_prefix)), decoder(form)
    return tokenizer
