"""What Ollama reads: a template that Go itself renders, and a Modelfile that says the same as template and params."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from model.data import chat
from model.data import tokenizer as tokenizers
from model.export import ollama

TALKS: list[list[chat.Message]] = [
    [{"role": "user", "content": "What is two and two?"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 < 2 & 'three' — ¿é? 👍\n\n{{ braces }}"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "And three?"},
    ],
]
# As Ollama executes a template: missing keys are empty, and messages have these two fields.
GO = """package main

import (
	"encoding/json"
	"os"
	"text/template"
)

func main() {
	var in struct {
		Template string
		Messages []struct{ Role, Content string }
	}
	if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil {
		panic(err)
	}
	parsed := template.Must(template.New("").Option("missingkey=zero").Parse(in.Template))
	if err := parsed.Execute(os.Stdout, map[string]any{"Messages": in.Messages}); err != nil {
		panic(err)
	}
}
"""


@pytest.mark.skipif(shutil.which("go") is None, reason="Debian's package golang-go is not installed")
def test_go_renders_the_template_to_the_same_prompt(tokenizer_file: Path, tmp_path: Path) -> None:
    """As Koda's own, for messages without spaces around them, which Go's templates cannot trim."""
    vocabulary = tokenizers.load(str(tokenizer_file))
    ollama.write(tmp_path, "m-Q8_0.gguf", vocabulary, 64, None)
    (tmp_path / "render.go").write_text(GO)
    environment = {"PATH": "/usr/local/go/bin:/usr/bin:/bin", "HOME": str(tmp_path), "GOCACHE": str(tmp_path / "cache")}
    subprocess.run(["go", "build", "render.go"], cwd=tmp_path, env=environment, check=True, timeout=300)
    for talk in TALKS:
        given = {"Template": (tmp_path / "template").read_text(), "Messages": talk}
        rendered = subprocess.run(
            [tmp_path / "render"], input=json.dumps(given).encode(), capture_output=True, check=True
        )
        assert rendered.stdout.decode() == chat.prompt(vocabulary, talk)


@pytest.mark.parametrize("temperature", [None, 0.0])
def test_modelfile_says_what_the_files_for_the_hub_say(
    tokenizer_file: Path, tmp_path: Path, temperature: float | None
) -> None:
    ollama.write(tmp_path, "m-Q8_0.gguf", tokenizers.load(str(tokenizer_file)), 64, temperature)
    params: dict[str, Any] = json.loads((tmp_path / "params").read_text())
    expected = {"stop": ["<|endoftext|>"], "num_ctx": 64}
    assert params == expected | ({} if temperature is None else {"temperature": 0.0})
    text = (tmp_path / "Modelfile").read_text()
    assert re.findall(r'^PARAMETER (\S+) "?(.+?)"?$', text, re.MULTILINE) == [
        (name, str(one)) for name, value in params.items() for one in (value if isinstance(value, list) else [value])
    ]
    assert re.findall('TEMPLATE """(.*?)"""', text, re.DOTALL) == [(tmp_path / "template").read_text()]
    assert text.startswith("FROM ./m-Q8_0.gguf\n") and not (tmp_path / "system").exists()


def test_template_of_others_is_left_to_ollama(tokenizer_file: Path, tmp_path: Path) -> None:
    theirs = tokenizers.load(str(tokenizer_file)).with_template("{{ messages[0]['content'] }}")
    ollama.write(tmp_path, "m-Q8_0.gguf", theirs, 64, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Modelfile", "params"]
    assert "TEMPLATE" not in (tmp_path / "Modelfile").read_text()
