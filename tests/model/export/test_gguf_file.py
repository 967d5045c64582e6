"""What GGUF files are called and state about themselves, as gguf-py's reader and llama.cpp see it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

from model import weights
from model.config import LlamaConfig
from model.data import tokenizer as tokenizers
from model.export import gguf_file
from model.export.about import About
from model.export.convert import write
from model.export.formats.gguf import Gguf, LlamaCpp
from tests.conftest import SHAPE

WIDE = replace(SHAPE, vocab_size=512, hidden_size=256, intermediate_size=512, num_attention_heads=8, head_dim=32)
STATED = {
    "name": "tiny",
    "author": "Ada",
    "license": "mit",
    "url": "https://x",
    "datasets": ["docs", "hub:user/stories/en@main"],
    "languages": ["de", "en"],
    "base_model": "org/Big-1B-v0.3",
    "finetune": "Chat",
    "temperature": 0.0,
}


def general(path: Path) -> dict[str, Any]:
    """A file's general.* keys by gguf-py's reader."""
    fields = GGUFReader(path).fields
    return {name.removeprefix("general."): f.contents() for name, f in fields.items() if name.startswith("general.")}


@pytest.mark.parametrize(
    ("name", "finetune", "layers", "file"),
    [
        ("tiny", "Chat", 2, "tiny-140K-Chat-Q8_0.gguf"),
        ("tiny", "", 2, "tiny-140K-Q8_0.gguf"),
        ("koda-124m", "Chat", 3300, "koda-124M-Chat-Q8_0.gguf"),
        ("koda-124m", "Chat", 2, "koda-140K-124m-Q8_0.gguf"),  # 124m is not its size
        ("SmolLM2-135M-Instruct", "Chat", 3300, "SmolLM2-135M-Instruct-Q8_0.gguf"),
        ("tiny-v2", "Chat", 2, "tiny-140K-Chat-v2-Q8_0.gguf"),
        ("tiny-140K-Chat", "Chat", 2, "tiny-140K-Chat-Q8_0.gguf"),
        ("7b", "", 2, "7b-140K-Q8_0.gguf"),
        ("a model", "", 2, "a-model-140K-Q8_0.gguf"),
    ],
)
def test_file_is_named_by_the_convention_of_gguf(name: str, finetune: str, layers: int, file: str) -> None:
    shape = replace(SHAPE, vocab_size=512, num_hidden_layers=layers)
    stated = gguf_file.metadata(About(name, finetune=finetune), shape)
    assert gguf_file.file_name(stated, "Q8_0") == file


def test_file_states_whose_it_is_of_what_and_how_it_is_meant_to_be_used(
    saved_model: Path, tokenizer_file: Path, tmp_path: Path
) -> None:
    exports = write(str(saved_model / "weights"), str(tokenizer_file), str(tmp_path), STATED, {"gguf": ("F16", "Q8_0")})
    for export, file_type in zip(exports, (1, 7), strict=True):  # llama.cpp's numbers of F16 and Q8_0
        assert general(tmp_path / export.path) == {
            "architecture": "llama",
            "type": "model",
            "name": "Tiny",
            "basename": "tiny",
            "size_label": "140K",
            "finetune": "Chat",
            "author": "Ada",
            "quantized_by": "Ada",
            "license": "mit",
            "url": "https://x",
            "base_model.count": 1,
            "base_model.0.name": "Big 1B v0.3",
            "base_model.0.organization": "Org",
            "base_model.0.version": "v0.3",
            "base_model.0.repo_url": "https://huggingface.co/org/Big-1B-v0.3",
            "dataset.count": 2,
            "dataset.0.name": "docs",
            "dataset.1.name": "Stories",
            "dataset.1.organization": "User",
            "dataset.1.repo_url": "https://huggingface.co/user/stories",
            "tags": ["koda", "text-generation"],
            "languages": ["de", "en"],
            "sampling.temp": 0.0,
            "file_type": file_type,
            "quantization_version": 2,
        }


def test_file_of_a_model_of_which_nothing_is_known_states_nothing(
    saved_model: Path, tokenizer_file: Path, tmp_path: Path
) -> None:
    """No empty key, and no sampling that nobody recommends."""
    model = weights.read(saved_model / "weights")
    gguf_file.write(tmp_path / "m.gguf", model, tokenizers.load(str(tokenizer_file)), "F16", About("m"))
    known = {"architecture", "type", "name", "basename", "size_label", "tags", "file_type", "quantization_version"}
    assert general(tmp_path / "m.gguf").keys() == known


@pytest.mark.parametrize("temperature", [0.0, 0.25])
def test_llama_cpp_samples_as_the_file_recommends(
    saved_model: Path, tokenizer_file: Path, tmp_path: Path, temperature: float
) -> None:
    """Where its user chooses nothing."""
    model, about = weights.read(saved_model / "weights"), About("m", temperature=temperature)
    gguf_file.write(tmp_path / "m.gguf", model, tokenizers.load(str(tokenizer_file)), "F16", about)
    settings = LlamaCpp(tmp_path / "m.gguf", 64)._post("/completion", {"prompt": [1], "n_predict": 1})
    assert settings["generation_settings"]["temperature"] == temperature


def test_server_is_not_there_before_its_loop_has_begun(saved_model: Path, tokenizer_file: Path, tmp_path: Path) -> None:
    """Of 140 that went earlier one waited for its loop for ever. A slot has a task once it has computed one."""
    model = weights.read(saved_model / "weights")
    gguf_file.write(tmp_path / "m.gguf", model, tokenizers.load(str(tokenizer_file)), "F16", About("m"))
    with LlamaCpp(tmp_path / "m.gguf", 64)._open("/slots") as reply:
        assert "id_task" in json.load(reply)[0]


@pytest.mark.parametrize(
    ("shape", "kinds"),
    [
        (WIDE, ["F16", "Q8_0", "Q4_K_M"]),
        (replace(WIDE, hidden_size=192), ["F16", "Q8_0"]),  # most rows are no multiple of 256
        (replace(SHAPE, hidden_size=80, num_attention_heads=5, num_key_value_heads=5), ["F16"]),  # nor of 32
    ],
)
def test_auto_is_every_usual_type_that_the_widths_fit(shape: LlamaConfig, kinds: list[str]) -> None:
    assert Gguf().kinds(("auto",), shape) == kinds
    assert Gguf().kinds(("F32", "auto", "F16"), shape) == ["F32", *kinds]
