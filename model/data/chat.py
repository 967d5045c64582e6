"""Conversations as text and as token ids: training, `koda chat` and every export use the vocabulary's one template.

That is the template of the model that was imported, or Koda's. In Koda's, a content is a string, or a list of parts of
type `text`, which are joined; other parts, other roles and calls of tools are an error. Its markers are plain text, so
that the vocabulary does not grow. A marker ends in a line break and each message is trimmed, so that a byte-level
pre-tokenizer never joins the two.

A conversation is encoded as a whole, up to each end of an answer: in SentencePiece's vocabularies a piece of text that
is encoded by itself begins with a space that the whole text does not have.
"""

import datetime
import functools
from collections.abc import Collection, Iterator
from typing import NamedTuple, NoReturn

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from model.data.vocabulary import Vocabulary
from model.errors import KodaError, one_line

# model/export/ollama.py has it as a Go template.
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['tool_calls'] %}{{ raise_exception('Calls of tools cannot be read.') }}{% endif %}"
    "{% set text = namespace(of=message['content']) %}"
    "{% if message['content'] is not string %}"
    "{% set text.of = '' %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] != 'text' %}{{ raise_exception('Only parts of type text can be read.') }}{% endif %}"
    "{% set text.of = text.of + part['text'] %}"
    "{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '### Assistant:\\n' + text.of | trim + eos_token }}"
    "{% elif message['role'] == 'system' %}"
    "{{ '### System:\\n' + text.of | trim + '\\n\\n' }}"
    "{% elif message['role'] == 'user' %}"
    "{{ '### User:\\n' + text.of | trim + '\\n\\n' }}"
    "{% else %}"
    "{{ raise_exception('The roles are system, user and assistant.') }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif %}"
)
# In place of the token that ends an answer while Koda's template is rendered: half a surrogate pair is in no text, so
# that what a person types never becomes that token.
END = "\udc00"

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": …}


class Tokens(NamedTuple):
    """A conversation as token ids, and for each whether the model is trained on it."""

    ids: list[int]
    trained: list[bool]


@functools.lru_cache(maxsize=4)
def _compiled(template: str) -> Template:
    """A template in the environment that transformers gives it."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(template)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def template(vocabulary: Vocabulary) -> str:
    """The chat template of a vocabulary, for its exports: its own, or Koda's."""
    return vocabulary.special.template or "{{ bos_token }}" * vocabulary.special.begins + TEMPLATE


def prompt(vocabulary: Vocabulary, messages: list[Message]) -> str:
    """The text that a model continues with its next answer."""
    text = _render(vocabulary, messages, True).replace(END, vocabulary.text_of(vocabulary.stops[0]))
    special = vocabulary.special
    return text if special.template else "".join(map(vocabulary.text_of, special.beginning)) + text


def with_template(vocabulary: Vocabulary, chosen: str) -> Vocabulary:
    """A vocabulary with its `own` template, or with Koda's. Raises KodaError as `check` does."""
    if chosen == "koda":
        vocabulary = vocabulary.with_template("")
    check(vocabulary)
    return vocabulary


def check(vocabulary: Vocabulary) -> None:
    """Raise KodaError for a template of others with which a model cannot be trained: one that shows an answer otherwise
    than it asks for it, or ends it with no token that ends an answer."""
    if not vocabulary.special.template:
        return
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes"}] * 2
    ids, trained = encode(vocabulary, messages)
    if sum(token in vocabulary.stops for token, learned in zip(ids, trained, strict=True) if learned) != 2:
        ends = ", ".join(map(vocabulary.text_of, vocabulary.stops))
        raise KodaError(f"the chat template of the tokenizer ends no answer with {ends}. {_CURE}")


_CURE = "With tokenize.template=koda, the model learns Koda's template in its place."


def encode_prompt(vocabulary: Vocabulary, messages: list[Message]) -> list[int]:
    """The token ids of `prompt`. With Koda's template, the letters `<|endoftext|>` in a message do not become that
    token; with one of others, whose markers are tokens themselves, they do, as in every runtime."""
    return _begun(vocabulary, [token for token, _ in _encode(vocabulary, _render(vocabulary, messages, True))])


def encode(
    vocabulary: Vocabulary, messages: list[Message], train_end: bool = True, unlearned: Collection[int] = ()
) -> Tokens:
    """The token ids of a conversation. The assistant's messages are trained, and with `train_end` the token after each
    that ends it: a model that was not trained on it never stops an answer. Those with the numbers `unlearned` are not.

    Raises KodaError for a template that fails, or shows an answer otherwise than it asks for it.
    """
    text = _render(vocabulary, messages, False)
    learned = []  # where the answers are in the text
    for number, message in enumerate(messages):
        if message["role"] == "assistant" and number not in unlearned:
            before, after = _render(vocabulary, messages[:number], True), _render(vocabulary, messages[: number + 1])
            if not (after.startswith(before) and text.startswith(after)):
                raise KodaError(f"the chat template of the tokenizer changes what came before an answer. {_CURE}")
            learned.append((len(before), len(after)))
    ids: list[int] = []
    trained: list[bool] = []
    ended = -1  # the answer whose end was seen: what a template writes after it is not the model's to say
    for token, start in _encode(vocabulary, text):
        answer = next((n for n, (begin, end) in enumerate(learned) if begin <= start < end), -1)
        learn = answer >= 0 and answer != ended
        if learn and token in vocabulary.stops:
            ended, learn = answer, train_end
        ids.append(token)
        trained.append(learn)
    begun = _begun(vocabulary, ids)
    return Tokens(begun, [False] * (len(begun) - len(ids)) + trained)


def _render(vocabulary: Vocabulary, messages: list[Message], generate: bool = False) -> str:
    own = vocabulary.special.template
    bos, end = (
        (vocabulary.text_of(vocabulary.special.bos), vocabulary.text_of(vocabulary.stops[0])) if own else ("", END)
    )
    try:
        return _compiled(own or TEMPLATE).render(
            messages=messages, bos_token=bos, eos_token=end, add_generation_prompt=generate
        )
    except Exception as error:  # a template raises what Python does: TypeError, ZeroDivisionError
        raise KodaError(f"the chat template of the tokenizer fails: {one_line(error)}. {_CURE}") from None


def _encode(vocabulary: Vocabulary, text: str) -> Iterator[tuple[int, int]]:
    """Each token of a rendered conversation, and where in the text it begins."""
    tokenizer, own = vocabulary.tokenizer, bool(vocabulary.special.template)
    start = 0
    for number, piece in enumerate(text.split(END)):
        if number:
            yield vocabulary.stops[0], start - 1
        before, tokenizer.encode_special_tokens = tokenizer.encode_special_tokens, not own
        encoding = tokenizer.encode(piece, add_special_tokens=False)
        tokenizer.encode_special_tokens = before
        for token, (begin, _) in zip(encoding.ids, encoding.offsets, strict=True):
            yield token, start + begin
        start += len(piece) + 1


def _begun(vocabulary: Vocabulary, ids: list[int]) -> list[int]:
    """With the token that every text begins with, where the template does not write it."""
    beginning = vocabulary.special.beginning
    return ids if ids[: len(beginning)] == beginning else beginning + ids
