"""OpenAI's own client against a server in each runtime."""

import asyncio
import itertools
import json
import socket
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from model.errors import KodaError
from model.export.runtime import answer
from model.sampling import Sampling
from model.serving.app import EventStream
from tests.model.serving.conftest import CONTEXT, Running

MESSAGES = [{"role": "user", "content": "Say 3"}]


def text_of(stream: Any) -> str:
    """The text of a stream of either kind."""
    choices = [chunk.choices[0] for chunk in stream if chunk.choices]
    return "".join((choice.delta.content or "") if hasattr(choice, "delta") else choice.text for choice in choices)


def await_(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def greedy_chat(running: Running) -> None:
    """The text is that of `koda chat`."""
    expected = running.engine.submit(answer, running.watched, MESSAGES, Sampling(limit=20)).result()
    reply = running.chat(max_tokens=20)
    assert reply.object == "chat.completion" and reply.model == "small"
    assert reply.choices[0].message.role == "assistant" and reply.choices[0].message.content == expected.text
    assert reply.choices[0].finish_reason == "length" and not expected.stopped


def usage(running: Running) -> None:
    prompt = len(running.call("encode", MESSAGES))
    used = running.chat(max_tokens=7).usage
    assert (used.prompt_tokens, used.completion_tokens, used.total_tokens) == (prompt, 7, prompt + 7)


def limits(running: Running) -> None:
    """The newer name, no limit at all (to the end of the context), and one beyond the context."""
    assert running.chat(max_completion_tokens=3).usage.completion_tokens == 3
    assert running.complete(temperature=1.5, seed=0).usage.completion_tokens <= 16
    for reply in (running.chat(), running.chat(max_tokens=10_000)):
        assert reply.usage.total_tokens == CONTEXT and reply.choices[0].finish_reason == "length"


def streamed_chat(running: Running) -> None:
    whole = running.chat(max_tokens=20)
    chunks = list(running.chat(max_tokens=20, stream=True))
    assert len(chunks) > 10 and chunks[0].choices[0].delta.role == "assistant"
    assert text_of(chunks) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "length"]
    assert not any(chunk.usage for chunk in chunks) and len({chunk.id for chunk in chunks}) == 1


def streamed_usage(running: Running) -> None:
    whole = running.complete(max_tokens=5)
    *_, last = running.complete(max_tokens=5, stream=True, stream_options={"include_usage": True})
    assert last.usage == whole.usage and last.choices == []


def stop_strings(running: Running) -> None:
    """The answer ends before the first of them, whole or streamed; nothing of it is shown or computed after it."""
    whole = running.complete(max_tokens=20).choices[0].text
    stop = whole[4:7]
    for given in (stop, ["never in it", stop]):
        reply = running.complete(max_tokens=20, stop=given)
        assert reply.choices[0].text == whole[: whole.index(stop)] and reply.choices[0].finish_reason == "stop"
        assert reply.usage.completion_tokens < 20
        chunks = list(running.complete(max_tokens=20, stop=given, stream=True))
        assert text_of(chunks) == whole[: whole.index(stop)] and chunks[-1].choices[0].finish_reason == "stop"


def scored_answer(running: Running, **fields: Any) -> tuple[str, list[Any]]:
    """The first of some questions whose answer has no letter in parts, of which llama.cpp's server has no
    log-probabilities; and those of its three tokens."""
    for question in (f"Say {number}" for number in range(3, 20)):
        reply = running.chat(question, max_tokens=3, logprobs=True, top_logprobs=5, **fields)
        if len(reply.choices[0].logprobs.content) == 3:
            return question, reply.choices[0].logprobs.content
    raise AssertionError("each answer has a letter in parts")


def chat_logprobs(running: Running) -> None:
    """They are the model's own, in nats: those that it has for the token after the prompt."""
    for fields in ({"temperature": 0}, {"temperature": 2, "seed": 0, "top_p": 0.1}):
        question, content = scored_answer(running, **fields)
        ids = running.call("encode", [{"role": "user", "content": question}])
        expected_V = np.sort(running.call("probe", ids, [len(ids)], []).next_NV[0])[::-1]
        first, likeliest = content[0], content[0].top_logprobs[0]
        assert [other.logprob for other in first.top_logprobs] == pytest.approx(expected_V[:5], abs=1e-3)
        assert (first.token, first.logprob) == (likeliest.token, likeliest.logprob) or fields["temperature"]
        assert first.bytes in (None, list(first.token.encode()))
    chunks = list(running.chat(max_tokens=3, logprobs=True, top_logprobs=5, stream=True))
    streamed = [entry for chunk in chunks if (given := chunk.choices[0].logprobs) for entry in given.content]
    whole = running.chat(max_tokens=3, logprobs=True, top_logprobs=5).choices[0].logprobs.content
    assert [entry.token for entry in streamed] == [entry.token for entry in whole]
    assert running.chat(max_tokens=2).choices[0].logprobs is None
    assert running.chat(max_tokens=2, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []


def completion_logprobs(running: Running) -> None:
    """In the older form of /v1/completions: four lists, an item for each token."""
    choice = running.complete(max_tokens=12, logprobs=2).choices[0]
    given = choice.logprobs
    assert len(given.tokens) == len(given.token_logprobs) == len(given.top_logprobs) == len(given.text_offset) > 3
    for token, logprob, top, at in zip(
        given.tokens, given.token_logprobs, given.top_logprobs, given.text_offset, strict=True
    ):
        assert max(top.values()) == logprob == top[token]  # the likeliest was chosen
        # A letter whose other parts do not come is shown with the next token, before it.
        assert token in choice.text[at : at + 4 + len(token)] or "\ufffd" in token or not token.isascii()
    assert len(running.complete(max_tokens=2, logprobs=0).choices[0].logprobs.tokens) == 2


def seeds_and_temperature(running: Running) -> None:
    def text(**fields: Any) -> str:
        return running.complete(max_tokens=12, **{"temperature": 1.5, **fields}).choices[0].text

    assert text(seed=1) == text(seed=1) != text(seed=2)
    assert text() != text()  # none: another each time
    assert text(seed=-1) and text(seed=(1 << 63) - 1)
    assert text(top_p=1e-4) == text(top_p=0) == text(temperature=0) == text(temperature=1e-40)


def other_messages(running: Running) -> None:
    """Parts of text, the newer name of `system`, and what a client sends back of an earlier answer."""
    earlier = running.chat(max_tokens=2).choices[0].message.model_dump()
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say 3"}]
    parts = [{"type": "text", "text": "Say "}, {"type": "text", "text": "3"}]
    newer = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    create = running.client.chat.completions.create
    one, two = (create(model="small", messages=[*part, earlier, *part], temperature=0) for part in (plain, newer))
    assert one.choices[0].message.content == two.choices[0].message.content and one.usage == two.usage


def overlong_prompt(running: Running) -> None:
    for ask in (running.complete, running.chat):
        with pytest.raises(openai.BadRequestError) as refused:
            ask("word " * 300)
        assert refused.value.code == "context_length_exceeded"
        assert f"{CONTEXT}" in refused.value.message and refused.value.type == "invalid_request_error"
        with pytest.raises(openai.BadRequestError):
            ask("word " * 300, stream=True)
    with pytest.raises(openai.BadRequestError, match="prompt is empty"):
        running.complete("")


def refused_conversation(running: Running) -> None:
    """What the chat template raises, in the template's words where the runtime passes them on."""
    with pytest.raises(KodaError, match="chat template"):
        running.call("encode", [{"role": "wizard", "content": "a"}])


FEATURES = (
    greedy_chat,
    usage,
    limits,
    streamed_chat,
    streamed_usage,
    stop_strings,
    chat_logprobs,
    completion_logprobs,
    seeds_and_temperature,
    other_messages,
    overlong_prompt,
    refused_conversation,
)


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.__name__)
def test_feature_is_the_same_in_every_runtime(running: Running, feature: Callable[[Running], None]) -> None:
    feature(running)


def test_eight_requests_at_once_get_the_answers_that_each_gets_alone(running: Running) -> None:
    prompts = [f"Say {number}" for number in range(8)]
    alone = [running.chat(prompt, max_tokens=10).choices[0].message.content for prompt in prompts]
    assert len(set(alone)) > 4
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda prompt: text_of(running.chat(prompt, max_tokens=10, stream=True)), prompts))
    assert together == alone


@pytest.fixture
def paused(running: Running) -> Iterator[Running]:
    """A server whose model stops after its third token, until it may go on."""
    running.watched.pause_after = 3
    yield running
    running.watched.pause_after = 0
    running.watched.go_on.set()
    running.watched.go_on.clear()


def connected(running: Running, **fields: Any) -> socket.socket:
    """The connection of a client that has sent a request and reads nothing."""
    body = json.dumps({"prompt": "def main(", "max_tokens": 100, "temperature": 0, **fields})
    where = running.address.removeprefix("http://")
    connection = socket.create_connection(running.socket.getsockname())
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {where}\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall((head + body).encode())
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_client_that_hangs_up_ends_the_computation(paused: Running, stream: bool) -> None:
    watched = paused.watched
    with connected(paused, stream=stream):
        await_(lambda: watched.tokens == 3)
    await_(lambda: not paused.engine.turn.locked())  # it has noticed
    watched.pause_after = 0
    watched.go_on.set()
    await_(lambda: watched.closed)
    assert watched.tokens <= 4  # the one that was under way is the last
    assert paused.complete(max_tokens=5).usage.completion_tokens == 5  # and the next one is answered


def test_client_that_hangs_up_while_it_waits_is_not_answered(paused: Running) -> None:
    def waiting() -> int:
        return len(paused.engine.turn._waiters or ())  # type: ignore[attr-defined]

    with connected(paused):
        await_(lambda: paused.watched.tokens == 3)
        with connected(paused):
            await_(lambda: waiting() == 1)
        await_(lambda: waiting() == 0)
        assert paused.engine.turn.locked()


def test_model_that_fails_under_way_is_an_error_of_the_server(
    in_jax: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = in_jax.watched.runtime.generate

    def failing(*arguments: Any) -> Iterator[Any]:
        yield from itertools.islice(real(*arguments), 2)
        raise MemoryError("no memory\nis left")

    monkeypatch.setattr(in_jax.watched.runtime, "generate", failing)
    with pytest.raises(openai.InternalServerError) as whole:
        in_jax.complete()
    assert whole.value.code == "internal_error" and "MemoryError: no memory" in whole.value.message
    with pytest.raises(openai.APIError, match="MemoryError: no memory"):
        text_of(in_jax.complete(stream=True))
    assert capsys.readouterr().err == "koda: MemoryError: no memory\n" * 2


def test_model_is_described_and_no_other_name_is_answered(in_jax: Running) -> None:
    (listed,) = in_jax.client.models.list().data
    assert listed.id == "small" and listed.context_length == CONTEXT
    assert in_jax.client.models.retrieve("small") == listed
    assert httpx.post(f"{in_jax.address}/v1/completions", json={"prompt": "a"}, timeout=60).json()["model"] == "small"
    for call in (
        lambda: in_jax.client.models.retrieve("other/model"),
        lambda: in_jax.client.chat.completions.create(model="other", messages=MESSAGES),
    ):
        with pytest.raises(openai.NotFoundError, match="this server has 'small'") as refused:
            call()
        assert refused.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/v1/chat/completions", 405), ("POST", "/v1/embeddings", 404)]
)
def test_other_addresses_are_refused_in_the_form_of_errors(
    in_jax: Running, method: str, path: str, status: int
) -> None:
    response = httpx.request(method, in_jax.address + path)
    assert response.status_code == status and response.json()["error"]["code"] == "unknown_url"


def test_page_requests_nothing_from_elsewhere(in_jax: Running) -> None:
    response = httpx.get(in_jax.address)
    assert response.headers["content-type"].startswith("text/html") and "<title>Chat</title>" in response.text
    assert "http://" not in response.text and "https://" not in response.text
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "access-control-allow-origin" not in response.headers


def test_stream_is_of_server_sent_events_that_end_in_done(in_jax: Running) -> None:
    response = httpx.post(
        f"{in_jax.address}/v1/completions", json={"prompt": "a", "stream": True, "max_tokens": 2}, timeout=60
    )
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, last, empty = response.text.split("\n\n")
    assert last == "data: [DONE]" and empty == ""
    assert all(json.loads(event.removeprefix("data: "))["object"] == "text_completion" for event in events)


def test_events_end_with_a_client_that_reads_no_more_and_hangs_up() -> None:
    """They are between two of them then, and nothing but being closed would end them."""
    closed, sending = False, asyncio.Event()

    async def events() -> AsyncGenerator[str, None]:
        nonlocal closed
        try:
            yield "data: 1\n\n"
        finally:
            closed = True

    async def send(message: Any) -> None:
        if message.get("body"):
            sending.set()
            await asyncio.Event().wait()

    async def receive() -> dict[str, str]:
        await sending.wait()
        return {"type": "http.disconnect"}

    async def respond() -> None:
        response = EventStream(events())
        await response({"type": "http", "asgi": {"spec_version": "2.3"}}, receive, send)
        assert closed

    asyncio.run(respond())
