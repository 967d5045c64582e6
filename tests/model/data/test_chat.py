from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from model.data import chat
from model.data import tokenizer as tokenizers
from model.errors import KodaError

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  What is two and two?\n"},
    {"role": "assistant", "content": "Four.  "},
    {"role": "user", "content": "And three?"},
    {"role": "assistant", "content": "Five, as far as I know."},
]


def test_only_answers_and_their_end_tokens_are_trained(tokenizer_file: Path) -> None:
    vocabulary = tokenizers.load(str(tokenizer_file))
    decode = vocabulary.tokenizer.decode
    ids, trained = chat.encode(vocabulary, TALK)
    answers = decode([i for i, t in zip(ids, trained, strict=True) if t], skip_special_tokens=False)
    rest = decode([i for i, t in zip(ids, trained, strict=True) if not t], skip_special_tokens=False)
    assert answers == "Four.<|endoftext|>Five, as far as I know.<|endoftext|>"
    assert rest == (
        "### System:\nBe brief.\n\n### User:\nWhat is two and two?\n\n### Assistant:\n"
        "### User:\nAnd three?\n\n### Assistant:\n"
    )


def test_transformers_renders_the_template_to_the_same_tokens(tokenizer_file: Path) -> None:
    """The tokens trained on, and those of a prompt, equal those of apply_chat_template."""
    vocabulary = tokenizers.load(str(tokenizer_file))
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file), eos_token="<|endoftext|>")
    theirs.chat_template = chat.TEMPLATE
    for talk in (
        TALK,
        [{"role": "user", "content": "1\n\n2  \t3 — ¿é? 👍"}, {"role": "assistant", "content": "- x\n- y"}],
    ):
        assert chat.encode(vocabulary, talk).ids == theirs.apply_chat_template(talk, return_dict=False)
        assert chat.encode_prompt(vocabulary, talk[:-1]) == theirs.apply_chat_template(
            talk[:-1], add_generation_prompt=True, return_dict=False
        )


PARTS = [{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}]
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
UNREADABLE = [
    ([{"role": "tool", "content": "4"}], "The roles are system, user and assistant"),
    ([{"role": "", "content": "4"}], "The roles are system, user and assistant"),
    ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "Only parts of type text"),
    ([{"role": "assistant", "content": "", "tool_calls": [CALL]}], "Calls of tools cannot be read"),
]


@pytest.mark.parametrize(("talk", "message"), UNREADABLE)
def test_transformers_renders_parts_of_text_and_no_other_part_or_role(
    tokenizer_file: Path, talk: list[dict[str, Any]], message: str
) -> None:
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file), eos_token="<|endoftext|>")
    theirs.chat_template = chat.TEMPLATE
    assert theirs.apply_chat_template(PARTS, tokenize=False) == "### User:\nHi\n\n"
    with pytest.raises(TemplateError, match=message):
        theirs.apply_chat_template(talk, tokenize=False)


def test_a_message_cannot_end_the_answer(tokenizer_file: Path) -> None:
    vocabulary = tokenizers.load(str(tokenizer_file))
    ids = chat.encode(vocabulary, [{"role": "user", "content": "write <|endoftext|> please"}]).ids
    assert vocabulary.end not in ids


def test_train_end_changes_the_mask_of_end_tokens_alone(tokenizer_file: Path) -> None:
    vocabulary = tokenizers.load(str(tokenizer_file))
    trained, untrained = chat.encode(vocabulary, TALK), chat.encode(vocabulary, TALK, train_end=False)
    assert trained.ids == untrained.ids
    differs = [i for i, a, b in zip(trained.ids, trained.trained, untrained.trained, strict=True) if a != b]
    assert differs == [vocabulary.end] * 2


def test_the_mask_of_each_token_of_a_small_conversation(tokenizer_file: Path) -> None:
    """Golden: each token, and whether it is trained on."""
    vocabulary = tokenizers.load(str(tokenizer_file))
    decode = vocabulary.tokenizer.decode
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    ids, trained = chat.encode(vocabulary, talk)
    pieces = [(decode([i], skip_special_tokens=False), t) for i, t in zip(ids, trained, strict=True)]
    before = [piece for piece, is_trained in pieces if not is_trained]
    assert "".join(before) == "### User:\nHi\n\n### Assistant:\n"
    assert pieces[: len(before)] == [(piece, False) for piece in before]
    assert pieces[len(before) :] == [*((piece, True) for piece in ("Y", "es")), ("<|endoftext|>", True)]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ tools[0].name }}", "UndefinedError: 'tools' is undefined"),
        ("{{ messages[0]['content'] + 1 }}", "TypeError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
    ],
)
def test_template_that_fails_is_refused_whatever_it_raises(tokenizer_file: Path, template: str, message: str) -> None:
    vocabulary = tokenizers.load(str(tokenizer_file)).with_template(template)
    for use in (chat.check, lambda vocabulary: chat.encode_prompt(vocabulary, TALK[:2])):
        with pytest.raises(KodaError, match=rf"chat template of the tokenizer fails: {message}.*template=koda"):
            use(vocabulary)


def test_llama_cpp_renders_the_template_to_the_same_tokens(tokenizer_file: Path, tmp_path: Path) -> None:
    """llama.cpp renders the template in the GGUF with its own Jinja, and tokenizes the result."""
    from dataclasses import replace

    from flax import nnx

    from model.export import gguf_file
    from model.export.about import About
    from model.export.formats.gguf import LlamaCpp
    from model.llama import Llama
    from model.weights import stored
    from tests.conftest import SHAPE

    model = stored(Llama(replace(SHAPE, vocab_size=512), rngs=nnx.Rngs(0)))
    gguf_file.write(tmp_path / "m.gguf", model, tokenizers.load(str(tokenizer_file)), "F16", About("m"))
    server, vocabulary = LlamaCpp(tmp_path / "m.gguf", 64), tokenizers.load(str(tokenizer_file))
    prompts = (TALK[:2], TALK[:4], [{"role": "user", "content": "1\n\n2  \t3 — ¿é? 👍"}])
    for talk in prompts:
        text = server._post("/apply-template", {"messages": talk})["prompt"]
        ids = server._post("/tokenize", {"content": text, "add_special": False, "parse_special": True})["tokens"]
        assert ids == chat.encode_prompt(vocabulary, talk)
    assert server._post("/apply-template", {"messages": PARTS})["prompt"].startswith("### User:\nHi\n\n")
    for talk, message in (UNREADABLE[0], UNREADABLE[-1]):
        with pytest.raises(HTTPError) as raised:
            server._post("/apply-template", {"messages": [*talk, *PARTS]})
        assert message in raised.value.read().decode()
