"""Vocabularies of other families: the same ids in every runtime, and back from the files."""

import sys
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from flax import nnx

from model import weights
from model.data import chat, gguf_tokenizer
from model.data import tokenizer as tokenizers
from model.data.encoder import HARD
from model.data.vocabulary import Vocabulary, encode_plain
from model.export import gguf_file
from model.export.about import About
from model.export.formats import gguf, hf, mlx
from model.llama import Llama
from tests.conftest import SHAPE

OURS = Path(__file__).parents[2] / "data"
REAL = (
    Path(__file__).parents[3].parent / "shared/data/tokenizers"
)  # the files of published models, under licences of theirs
FAMILIES = {
    "tiny-spm": OURS,
    **dict.fromkeys(("smollm2", "tinyllama", "llama3", "deepseek-coder", "gpt2-chatml"), REAL),
}
MARKED = (
    "<s>x</s> y",
    "<|endoftext|>",
    "x <|im_start|>user\nHi<|im_end|>\n",
    "<|begin_of_text|>a<|eot_id|> b",
    "<|start_header_id|>user<|end_header_id|>\n\nHi",
    "<|user|>\nHi</s>\n<|assistant|>\n",
    "<tool_call>{}",
)
TALK: list[chat.Message] = [
    {"role": "user", "content": "How many?"},
    {"role": "assistant", "content": "Yes, 12."},
    {"role": "user", "content": "Again."},
]


def folder_of(name: str) -> Path:
    folder = FAMILIES[name] / name
    if not folder.is_dir():
        pytest.skip(f"the tokenizer of {name} is not beside this project: it is not ours to publish")
    return folder


def texts(vocabulary: Vocabulary) -> list[str]:
    """Strings on which tokenizers differ, without those that have a byte which is in no token of the vocabulary."""
    strings = [*HARD, *MARKED, "", " ", "a\n\n12", "3333 v1.2", "It's 'RE 'Ve", "¡«»", "\ue000", "a ,b . c"]
    if REAL.is_dir():
        sys.path.insert(0, str(REAL))
        from torture import TEXTS  # type: ignore[import-not-found]

        strings += TEXTS
    return [
        text for text in strings if vocabulary.tokenizer.decode(vocabulary.plain(text), False).strip() == text.strip()
    ]


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Vocabulary, Path]:
    """Random weights with this vocabulary, and what a Llama of others may have, in all three formats."""
    folder = tmp_path_factory.mktemp(request.param)
    vocabulary = tokenizers.load(str(folder_of(request.param)))
    rows = -(-vocabulary.size // 64) * 64 + 64
    shape = replace(
        SHAPE,
        vocab_size=rows,
        max_position_embeddings=512,
        head_dim=32,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
        rope_theta=500_000.0,
        rope_scaling="llama3",
        rope_factor=8.0,
        rope_original_context=8192,
    )
    model = Llama(shape, rngs=nnx.Rngs(0))
    draw = nnx.Rngs(1)
    nnx.update(model, jax.tree.map(lambda p: p + 0.1 * jax.random.normal(draw(), p.shape), nnx.state(model, nnx.Param)))
    vocabulary.save(folder)
    vocabulary = tokenizers.load(str(folder / "tokenizer.json"))  # as the stages read it
    weights.save(folder / "weights", model)
    stored = weights.stored(model)
    hf.write(folder / "hf", stored, vocabulary, "auto")
    gguf_file.write(folder / "m.gguf", stored, vocabulary, "F32", About("m"))
    mlx.write(folder / "mlx", folder / "hf", "fp16")
    return vocabulary, folder


def test_every_runtime_gives_the_ids_of_the_file(exported: tuple[Vocabulary, Path]) -> None:
    """Plain text, and text whose special tokens are read; conversations; and the tokens that end an answer."""
    vocabulary, folder = exported
    strings, bos = texts(vocabulary), vocabulary.text_of(vocabulary.special.bos)
    plain = encode_plain(vocabulary.tokenizer, strings)
    marked = [vocabulary.tokenizer.encode(text, add_special_tokens=False).ids for text in strings]
    server = gguf.LlamaCpp(folder / "m.gguf", 512)
    others = {"llama.cpp": server, "transformers": hf.Transformers(folder / "hf"), "mlx-lm": mlx.MlxLm(folder / "mlx")}
    for name, runtime in others.items():
        differ = [t for t, ids in zip(strings, plain, strict=True) if runtime.tokenize(t) != ids]
        # DeepSeek's are letters in llama.cpp, which takes them for control tokens.
        assert [t for t in differ if "fim▁" not in t] == [], name
        stops = set(vocabulary.stops)
        assert runtime.ends({*stops, vocabulary.plain("a")[-1]}) == stops, name
        assert runtime.prompt(TALK).removeprefix(bos) == chat.prompt(vocabulary, TALK).removeprefix(bos), name
    asked = {"add_special": False, "parse_special": True}
    answers = [server._post("/tokenize", {"content": text, **asked})["tokens"] for text in strings]
    assert [t for t, a, b in zip(strings, answers, marked, strict=True) if a != b] == []
    begun = server._post("/tokenize", {"content": "a b", "add_special": True, "parse_special": False})["tokens"]
    assert begun == [*vocabulary.special.beginning, *vocabulary.plain("a b")] == vocabulary.tokenizer.encode("a b").ids


def test_conversation_is_encoded_as_its_template_writes_it(exported: tuple[Vocabulary, Path]) -> None:
    """As transformers does, but for the token that every text begins with; only answers and their ends are trained."""
    vocabulary, folder = exported
    theirs = hf.Transformers(folder / "hf").tokenizer
    beginning = vocabulary.special.beginning
    ids = theirs.apply_chat_template(TALK, add_generation_prompt=True, return_dict=False)
    ours = chat.encode_prompt(vocabulary, TALK)
    assert ours == (ids if ids[: len(beginning)] == beginning else beginning + ids)
    tokens = chat.encode(vocabulary, TALK)
    learned = [token for token, trained in zip(tokens.ids, tokens.trained, strict=True) if trained]
    assert learned[-1] in vocabulary.stops and sum(token in vocabulary.stops for token in learned) == 1
    assert vocabulary.tokenizer.decode(learned[:-1]).strip() == "Yes, 12."
    chat.check(vocabulary)


def test_vocabulary_of_a_gguf_file_is_the_same(exported: tuple[Vocabulary, Path]) -> None:
    vocabulary, folder = exported
    back = gguf_tokenizer.read_file(folder / "m.gguf")
    strings = texts(vocabulary)
    assert encode_plain(back.tokenizer, strings) == encode_plain(vocabulary.tokenizer, strings)
    for text in strings:
        assert back.tokenizer.encode(text).ids == vocabulary.tokenizer.encode(text).ids
    ours = vocabulary.special
    assert (back.special.stops, back.special.begins, back.special.bos) == (ours.stops, ours.begins, ours.bos)
    assert back.special.template == chat.template(vocabulary) and back.family == vocabulary.family


def test_tokenizer_file_goes_into_the_export_unchanged(exported: tuple[Vocabulary, Path]) -> None:
    vocabulary, folder = exported
    if vocabulary.text:  # but for DeepSeek's, which gets the beginning that only a class of transformers added
        assert (folder / "hf/tokenizer.json").read_text() == vocabulary.text
