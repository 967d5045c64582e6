import io
from collections.abc import Generator
from pathlib import Path

import pytest

from flows.cli.chat import Conversation
from flows.cli.main import main
from model.data import chat
from model.errors import KodaError
from model.files import write_json
from model.sampling import Sampling


class Counting:
    """A runtime for which a letter is a token and whose answer says how many messages it got."""

    def tokenize(self, text: str) -> list[int]:
        return list(text.encode())

    def prompt(self, messages: list[chat.Message]) -> str:
        return "".join(f"{message['role']}: {message['content']}\n" for message in messages)

    def stream(self, messages: list[chat.Message], sampling: Sampling) -> Generator[str, None, bool]:
        yield from (str(len(messages)), "!")
        return True


def test_oldest_turns_are_dropped_when_the_context_is_full() -> None:
    size = len(Counting().prompt([{"role": "user", "content": "Question 0"}]))
    conversation = Conversation(Counting(), context=size + 40 + 60, sampling=Sampling(limit=40))
    answers = ["".join(conversation.ask(f"Question {turn}")) for turn in range(5)]
    assert answers == ["1!", "3!", "3!", "3!", "3!"] and conversation.forgotten == 3
    assert conversation.messages[-2:] == [
        {"role": "user", "content": "Question 4"},
        {"role": "assistant", "content": "3!"},
    ]
    with pytest.raises(KodaError, match="do not fit the context"):
        "".join(conversation.ask("x" * 200))
    assert "".join(conversation.ask("Question 5")) == "3!"  # and the conversation goes on


@pytest.mark.parametrize(
    "wrong",
    [
        *(("--limit", "0"), ("--top-p", "0"), ("--top-k", "-3"), ("--seed", "-1"), ("--seed", str(1 << 63))),
        *(("--temperature", value) for value in ("-1", "1e+39", "inf", "nan")),
        *(("--repetition-penalty", value) for value in ("0.5", "inf", "nan")),
    ],
)
def test_invalid_sampling_options_are_refused(wrong: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", *wrong]) == 1
    assert f"koda: {wrong[0]} {wrong[1]}" in capsys.readouterr().err


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Sampling]:
    """What a runtime of the run `r`, which has 512 tokens, is asked for."""
    record: list[Sampling] = []

    class Recording(Counting):
        def stream(self, messages: list[chat.Message], sampling: Sampling) -> Generator[str, None, bool]:
            record.append(sampling)
            return super().stream(messages, sampling)

    monkeypatch.setenv("KODA_RUNS", str(tmp_path))
    monkeypatch.setattr("flows.cli.chat.open_runtime", lambda *_: Recording())
    shape = {"vocab_size": 512, "max_position_embeddings": 1000}
    write_json(tmp_path / "r/extend/weights/COMMIT.json", {"config": shape})
    return record


@pytest.mark.parametrize(
    ("option", "value", "asked_for"),
    [
        ("--top-k", "511", 511),
        ("--top-k", "512", 0),
        ("--top-k", "100000", 0),
        ("--temperature", "1e-40", 0.0),
        ("--temperature", "1e-5", 1e-5),
        ("--seed", str((1 << 63) - 1), (1 << 63) - 1),
    ],
)
def test_options_at_their_edges_mean_the_same_in_every_runtime(
    asked: list[Sampling], option: str, value: str, asked_for: float
) -> None:
    assert main(["chat", "r", "--prompt", "x", option, value]) == 0
    assert getattr(asked[0], option[2:].replace("-", "_")) == asked_for


def test_question_that_is_not_utf_8_is_named_and_the_conversation_goes_on(
    asked: list[Sampling], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\ncaf\xc3\xa9\n"), encoding="utf-8"))
    assert main(["chat", "r"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ["> (the question 'caf\\udce9' is not UTF-8.)", "> 1!"] and len(asked) == 1
    assert main(["chat", "r", "--prompt", "caf\udce9"]) == 1
    assert capsys.readouterr().err == "koda: the question 'caf\\udce9' is not UTF-8.\n"


def test_model_of_an_earlier_result_is_named_as_such(
    asked: list[Sampling], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(tmp_path / "r/extend/stage.json", {"reads": {"sft": "earlier"}})
    assert main(["chat", "r", "--prompt", "x"]) == 0
    assert capsys.readouterr().err == "(this model was built from an earlier sft; koda run --name r)\n"
