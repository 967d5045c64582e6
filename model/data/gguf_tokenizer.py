"""The tokenizer inside a GGUF file, with its chat template and its special tokens
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#ggml)."""

import json
from pathlib import Path
from typing import Any

from gguf import GGUFReader, GGUFWriter, TokenType
from tokenizers import AddedToken, Tokenizer, decoders, models

from model.data.families import BYTE, IGNORE_MERGES, SPACE, STEPS, Family, pair, pre_tokenizer, sentencepiece_normalizer
from model.data.special import Special
from model.data.vocabulary import Vocabulary, begin_with
from model.errors import KodaError

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

    def of(key: str, default: Any = None) -> Any:
        field = reader.get_field(f"tokenizer.{key}")
        return default if field is None else field.contents()

    model, pre, space_prefix = of("ggml.model"), of("ggml.pre", "default"), of("ggml.add_space_prefix", True)
    texts, types = of("ggml.tokens"), of("ggml.token_type")
    if texts is None or types is None:
        raise KodaError(f"{path} has no tokenizer.")
    tokens = dict(zip(texts, range(len(texts)), strict=True))
    used = {text: number for text, number in tokens.items() if types[number] != TokenType.UNUSED}
    if model == "llama":
        form = Family("llama", "default", bool(space_prefix))
        tokenizer = _sentencepiece(used, types, of("ggml.scores"), bool(space_prefix))
    elif model == "gpt2" and pre in STEPS:
        form = Family("gpt2", pre)
        merges = [pair(merge) for merge in of("ggml.merges")]
        tokenizer = Tokenizer(models.BPE(used, merges, ignore_merges=pre in IGNORE_MERGES))
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer(pre), decoders.ByteLevel()
    else:
        raise KodaError(
            f"{path}: its tokenizer is {model!r} with pre-tokenizer {pre!r}; Koda reads `llama`, and `gpt2` with "
            f"{', '.join(STEPS)}."
        )
    kinds = ((TokenType.CONTROL, True), (TokenType.UNKNOWN, True), (TokenType.USER_DEFINED, False))
    for kind, special in kinds:
        added = [AddedToken(text, special=special, normalized=False) for text in used if types[used[text]] == kind]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
    bos, begins = of("ggml.bos_token_id"), bool(of("ggml.add_bos_token", model == "llama" or pre in IGNORE_MERGES))
    listed = [of("ggml.eos_token_id"), *(of(f"ggml.{name}_token_id") for name in FURTHER_ENDS)]
    stops = tuple(dict.fromkeys(number for number in listed if number is not None))
    if not stops:
        raise KodaError(f"{path} names no token that ends a text (tokenizer.ggml.eos_token_id).")
    begins = begins and bos is not None
    if begins:
        begin_with(tokenizer, bos)
    special_tokens = Special(
        end=stops[0],
        stops=stops,
        bos=bos,
        begins=begins,
        pad=of("ggml.padding_token_id"),
        unknown=of("ggml.unknown_token_id"),
        template=of("chat_template", ""),
    )
    return Vocabulary(tokenizer, special_tokens, form)


def _sentencepiece(used: dict[str, int], types: list[int], scores: list[float], space_prefix: bool) -> Tokenizer:
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
    tokenizer.normalizer = sentencepiece_normalizer(space_prefix)
    strip = [decoders.Strip(" ", 1, 0)] if space_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer
