"""What Ollama needs beside a GGUF file: a Modelfile, and the files that it reads from a repository of the Hub.

`ollama create` reads the Modelfile (https://docs.ollama.com/modelfile); `ollama run hf.co/USER/NAME` reads `template`,
a Go template, and `params`, JSON (https://huggingface.co/docs/hub/ollama). All say the same.
"""

from pathlib import Path
from typing import Any

from model.data.vocabulary import Vocabulary
from model.files import atomic_write, write_json

# Koda's chat template (model/data/chat.py) as a Go template. It does not trim the messages, which Ollama passes as the
# user typed them.
TEMPLATE = (
    "{{ range .Messages }}"
    '{{ if eq .Role "assistant" }}### Assistant:\n{{ .Content }}'
    "<|endoftext|>"
    '{{ else if eq .Role "system" }}### System:\n{{ .Content }}\n\n'
    "{{ else }}### User:\n{{ .Content }}\n\n"
    "{{ end }}{{ end }}### Assistant:\n"
)


def write(folder: Path, file: str, vocabulary: Vocabulary, context: int, temperature: float | None) -> None:
    """Write Modelfile, template and params to `folder`, for a `context` of so many tokens; `file` is the GGUF file
    that the Modelfile names."""
    go, settings = template(vocabulary), params(vocabulary, context, temperature)
    if go:
        _write(folder / "template", go)
    write_json(folder / "params", settings)
    _write(folder / "Modelfile", modelfile(file, go, settings))


def template(vocabulary: Vocabulary) -> str:
    """The chat template for Ollama; empty for one of others, of which Ollama knows the usual ones by themselves."""
    if vocabulary.special.template:
        return ""
    return TEMPLATE.replace("<|endoftext|>", vocabulary.text_of(vocabulary.stops[0]))


def params(vocabulary: Vocabulary, context: int, temperature: float | None) -> dict[str, Any]:
    """Ollama's parameters: what ends an answer, the context in tokens, and the temperature that is recommended."""
    recommended = {} if temperature is None else {"temperature": temperature}
    return {"stop": [*map(vocabulary.text_of, vocabulary.stops)], "num_ctx": context, **recommended}


def modelfile(file: str, go: str, settings: dict[str, Any]) -> str:
    """The same as a Modelfile."""
    lines = [f"FROM ./{file}"]
    if go:
        lines.append(f'TEMPLATE """{go}"""')
    for name, value in settings.items():
        values = [f'"{text}"' for text in value] if isinstance(value, list) else [value]
        lines += [f"PARAMETER {name} {one}" for one in values]
    return "\n".join([*lines, ""])


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text)
