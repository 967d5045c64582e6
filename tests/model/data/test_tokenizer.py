import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from model.data import tokenizer as tokenizers
from model.data.encoder import HARD
from model.data.families import parsing
from model.errors import KodaError


@pytest.fixture
def pair(tokenizer_file: Path, tmp_path: Path) -> Path:
    """A folder with vocab.json and merges.txt."""
    raw = json.loads(tokenizer_file.read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(raw["model"]["vocab"]))
    merges = ["#version: 0.2", *(" ".join(m) for m in raw["model"]["merges"])]
    (tmp_path / "merges.txt").write_text("\n".join(merges) + "\n")
    return tmp_path


def test_vocab_and_merges_give_the_same_tokenizer(pair: Path, tokenizer_file: Path, prose: str) -> None:
    one, other = tokenizers.load(str(pair)), tokenizers.load(str(tokenizer_file))
    texts = [*HARD, prose[:20_000]]
    assert [*map(one.plain, texts)] == [*map(other.plain, texts)]
    assert one.special == other.special


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("vocab.json", b"{"),
        ("vocab.json", b"[]"),
        ("merges.txt", b"\xef\xbb\xbf#version: 0.2\n"),
        ("merges.txt", b"abc\n"),
        ("merges.txt", b"qqq zzz\n"),
        ("merges.txt", b"\xe9 x\n"),
    ],
)
def test_damaged_pair_is_refused_with_its_path(pair: Path, file: str, content: bytes) -> None:
    (pair / file).write_bytes(content)
    with pytest.raises(KodaError, match=r"/vocab\.json with merges\.txt cannot be read as a tokenizer: .*"):
        tokenizers.load(str(pair))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("added_tokens.json", {"<|im_start|>": 512}, r"<\|im_start\|>"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"300": {"content": "<x>"}}}, "<x>"),
        ("tokenizer_config.json", {"additional_special_tokens": ["<x>"]}, "<x>"),
        ("tokenizer_config.json", {"eos_token": "!"}, "!"),
        ("tokenizer_config.json", {"add_prefix_space": True}, "add_prefix_space"),
        ("tokenizer_config.json", {"tokenizer_class": "Qwen2Tokenizer"}, "tokenizer_class = Qwen2Tokenizer"),
    ],
)
def test_what_a_pair_alone_does_not_say_is_refused_by_name(
    pair: Path, file: str, content: dict[str, Any], message: str
) -> None:
    (pair / file).write_text(json.dumps(content))
    with pytest.raises(KodaError, match=rf"/{file}: {message} cannot be read .* writes tokenizer\.json"):
        tokenizers.load(str(pair))


def test_special_tokens_of_a_pair_are_those_of_its_folder(pair: Path) -> None:
    (pair / "config.json").write_text('{"eos_token_id": 5}')
    (pair / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>", "chat_template": "{{ eos_token }}"}')
    special = tokenizers.load(str(pair)).special
    assert (special.end, special.stops, special.template) == (5, (0, 5), "{{ eos_token }}")


@pytest.mark.parametrize("content", ["{}", '{"model": {"type": "Unigram"}}'])
def test_a_tokenizer_of_another_kind_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(KodaError, match="byte-level BPE"):
        tokenizers.load(str(tmp_path))


def test_panic_of_the_library_is_an_error_with_the_path(tokenizer_file: Path) -> None:
    """It is no Exception, and would pass whatever catches those."""
    raw = json.loads(tokenizer_file.read_text())
    raw["model"]["continuing_subword_prefix"] = "##"
    with pytest.raises(KodaError, match="it cannot be read as a tokenizer"), parsing("it"):
        Tokenizer.from_str(json.dumps(raw))


def test_a_missing_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KodaError, match="no tokenizer there"):
        tokenizers.load(str(tmp_path / "nowhere"))


def test_gpt2_without_a_network_is_reported_with_the_command_to_download(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # no server listens there
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # between attempts
    with pytest.raises(KodaError, match=r"hf download openai-community/gpt2 .* --local-dir FOLDER"):
        tokenizers.load("gpt2")
    assert tokenizers.fingerprint("gpt2")  # needs no network
