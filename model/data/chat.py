"""The chat template, defined once: training, `koda chat` and every export use it.

A content is a string, or a list of parts of type `text`, which are joined; other parts, other roles
and calls of tools are an error.
Markers are plain text, so that the vocabulary does not grow. A marker ends in a line break and each message is trimmed,
so that GPT-2's pre-tokenizer never joins the two: the tokens of the whole text are the tokens of its parts.
"""

from collections.abc import Collection
from typing import NamedTuple, NoReturn

from jinja2 import Environment, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from model.data.tokenizer import END_OF_TEXT, encode_plain, end_of_text

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
# The same as a Go template, for Ollama. It does not trim the messages, which Ollama passes as the user typed them.
OLLAMA = (
    "{{ range .Messages }}"
    '{{ if eq .Role "assistant" }}### Assistant:\n{{ .Content }}'
    + END_OF_TEXT
    + '{{ else if eq .Role "system" }}### System:\n{{ .Content }}\n\n'
    "{{ else }}### User:\n{{ .Content }}\n\n"
    "{{ end }}{{ end }}### Assistant:\n"
)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


_ENVIRONMENT: Environment = ImmutableSandboxedEnvironment()
_ENVIRONMENT.globals["raise_exception"] = _raise_exception  # as in every runtime's own environment
_COMPILED = _ENVIRONMENT.from_string(TEMPLATE)
_ANSWER = _COMPILED.render(messages=[], add_generation_prompt=True)  # the marker before an answer

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": …}


class Tokens(NamedTuple):
    """A conversation as token ids, and for each whether the model is trained on it."""

    ids: list[int]
    trained: list[bool]


def prompt(messages: list[Message]) -> str:
    """The text that a model continues with its next answer."""
    return _COMPILED.render(messages=messages, eos_token=END_OF_TEXT, add_generation_prompt=True)


def modelfile(file: str, context: int) -> str:
    """A Modelfile for Ollama (https://docs.ollama.com/modelfile): `file` with a context of so many tokens."""
    return f'FROM ./{file}\nTEMPLATE """{OLLAMA}"""\nPARAMETER stop "{END_OF_TEXT}"\nPARAMETER num_ctx {context}\n'


def encode_prompt(tokenizer: Tokenizer, messages: list[Message]) -> list[int]:
    """The token ids of `prompt`; the letters `<|endoftext|>` in a message do not become that token."""
    return _encode(tokenizer, messages, _ANSWER).ids


def encode(
    tokenizer: Tokenizer, messages: list[Message], train_end: bool = True, unlearned: Collection[int] = ()
) -> Tokens:
    """The token ids of a conversation. The assistant's messages are trained, and with `train_end` the end-of-text token
    after each: a model that was not trained on it never stops an answer. Those with the numbers `unlearned` are not.
    """
    return _encode(tokenizer, messages, "", train_end, unlearned)


def _encode(
    tokenizer: Tokenizer,
    messages: list[Message],
    last: str,
    train_end: bool = True,
    unlearned: Collection[int] = (),
) -> Tokens:
    ids: list[int] = []
    trained: list[bool] = []

    def add(text: str, learn: bool) -> None:
        new = encode_plain(tokenizer, [text])[0] if text else []
        ids.extend(new)
        trained.extend([learn] * len(new))

    pending = ""  # the text up to an answer is encoded in one piece: the pre-tokenizer looks ahead over line breaks
    for number, message in enumerate(messages):
        text = _COMPILED.render(messages=[message], eos_token="", add_generation_prompt=False)
        if message["role"] == "assistant":
            add(pending + _ANSWER, False)
            learn = number not in unlearned
            add(text.removeprefix(_ANSWER), learn)
            ids.append(end_of_text(tokenizer))
            trained.append(learn and train_end)
            pending = ""
        else:
            pending += text
    add(pending + last, False)
    return Tokens(ids, trained)
