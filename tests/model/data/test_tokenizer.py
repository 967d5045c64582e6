import json
from pathlib import Path

import pytest

from model.data import tokenizer as tokenizers
from model.data.encoder import HARD
from model.errors import KodaError


def test_vocab_and_merges_give_the_same_tokenizer(tokenizer_file: Path, tmp_path: Path, prose: str) -> None:
    raw = json.loads(tokenizer_file.read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(raw["model"]["vocab"]))
    merges = ["#version: 0.2", *(" ".join(m) for m in raw["model"]["merges"])]
    (tmp_path / "merges.txt").write_text("\n".join(merges) + "\n")
    one, other = tokenizers.load(str(tmp_path)), tokenizers.load(str(tokenizer_file))
    texts = [*HARD, prose[:20_000]]
    assert [*map(one.plain, texts)] == [*map(other.plain, texts)]
    assert one.special == other.special


@pytest.mark.parametrize("content", ["{}", '{"model": {"type": "Unigram"}}'])
def test_a_tokenizer_of_another_kind_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(KodaError, match="byte-level BPE"):
        tokenizers.load(str(tmp_path))


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
