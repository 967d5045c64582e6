from collections.abc import Generator

import pytest

from flows.cli.chat import Conversation
from flows.cli.main import main
from model.data import chat
from model.errors import KodaError
from model.sampling import Sampling


class Counting:
    """A runtime for which a letter is a token and whose answer says how many messages it got."""

    def tokenize(self, text: str) -> list[int]:
        return list(text.encode())

    def stream(self, messages: list[chat.Message], sampling: Sampling) -> Generator[str, None, bool]:
        yield from (str(len(messages)), "!")
        return True


def test_oldest_turns_are_dropped_when_the_context_is_full() -> None:
    size = len(chat.prompt([{"role": "user", "content": "Question 0"}]))
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


@pytest.mark.parametrize("wrong", [("--limit", "0"), ("--top-p", "0"), ("--temperature", "-1"), ("--top-k", "-3")])
def test_invalid_sampling_options_are_refused(wrong: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", *wrong]) == 1
    assert f"koda: {wrong[0]} {wrong[1]}" in capsys.readouterr().err
