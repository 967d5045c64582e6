"""What a request may contain."""

import json
from typing import Any

import pytest

from model.serving.openai_api import ApiError, ChatRequest, CompletionRequest, Request, parse

MESSAGES = [{"role": "user", "content": "Say 3"}]


def parsed(kind: type[Request], **fields: Any) -> Request:
    own = {"messages": MESSAGES} if kind is ChatRequest else {"prompt": "a"}
    return parse(kind, json.dumps(own | fields).encode())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("temperature", value) for value in ("hot", -1, 2.1, True, [1])),
        *(("top_p", value) for value in (-0.1, 1.1)),
        *(("max_tokens", value) for value in (0, -1, 1.5, "5")),
        ("seed", "x"),
        ("stream", "yes"),
        *(("stop", value) for value in ("", ["a", ""], ["a"] * 5, [1])),
        ("model", 5),
        ("n", 2),
        ("presence_penalty", 0.5),
        ("logit_bias", {"5": 1}),
        ("stream_options", {"include_usage": True}),  # without stream
        ("temprature", 1),
    ],
)
@pytest.mark.parametrize("kind", [ChatRequest, CompletionRequest])
def test_field_that_cannot_be_met_is_refused_by_name(kind: type[Request], field: str, value: Any) -> None:
    with pytest.raises(ApiError) as refused:
        parsed(kind, **{field: value})
    error = refused.value.body["error"]
    assert refused.value.status == 400 and error["type"] == "invalid_request_error"
    assert field in error["message"] and error["param"].split(".")[0] == field


@pytest.mark.parametrize(
    ("kind", "fields", "param"),
    [
        (ChatRequest, {"messages": []}, "messages"),
        (ChatRequest, {"messages": "Say 3"}, "messages"),
        (ChatRequest, {"messages": [{"role": "wizard", "content": "a"}]}, "messages.0.role"),
        (ChatRequest, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        (ChatRequest, {"top_logprobs": 2}, "top_logprobs"),
        (ChatRequest, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (ChatRequest, {"tools": [{"type": "function"}]}, "tools"),
        (ChatRequest, {"response_format": {"type": "json_object"}}, "response_format"),
        (CompletionRequest, {"prompt": ["a", "b"]}, "prompt"),
        (CompletionRequest, {"prompt": [1, 2]}, "prompt"),
        (CompletionRequest, {"echo": True}, "echo"),
        (CompletionRequest, {"logprobs": True}, "logprobs"),
    ],
)
def test_field_of_one_endpoint_is_refused_by_name(kind: type[Request], fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as refused:
        parsed(kind, **fields)
    assert str(refused.value.body["error"]["param"]).startswith(param)


@pytest.mark.parametrize("kind", [ChatRequest, CompletionRequest])
def test_what_clients_send_without_meaning_anything_is_accepted(kind: type[Request]) -> None:
    neutral = {"n": 1, "presence_penalty": 0.0, "frequency_penalty": 0, "logit_bias": {}, "user": "me", "tools": []}
    absent = dict.fromkeys(("stop", "seed", "max_tokens", "temperature", "top_p", "stream_options", "tool_choice"))
    assert parsed(kind, **neutral, **absent, metadata={"a": "b"}).stops == []


@pytest.mark.parametrize(
    "body",
    [b"", b"{nope", b"[]", b"5", b'{"prompt": NaN}', b'{"prompt": "\xff"}', b'{"prompt": "\\ud800"}', b"[" * 9999],
)
def test_what_is_not_a_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError, match=r"not (valid JSON|a JSON object)"):
        parse(CompletionRequest, body)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"temperature": 1.0, "top_p": 1.0, "limit": 16}),  # OpenAI's defaults
        ({"max_tokens": None}, {"limit": 100}),
        ({"max_tokens": 5}, {"limit": 5}),
        ({"max_tokens": 500}, {"limit": 100}),
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"temperature": 1e-9}, {"temperature": 0.0}),
        ({"temperature": 1.5, "top_p": 0}, {"temperature": 0.0, "top_p": 1.0}),
        ({"seed": 7}, {"seed": 7}),
        ({"seed": -1}, {"seed": (1 << 31) - 1}),
    ],
)
def test_settings_mean_what_they_mean_in_openai_s_api(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    sampling = parsed(CompletionRequest, **fields).sampling(100)._asdict()
    assert {name: sampling[name] for name in expected} == expected


def test_seed_is_another_each_time_unless_it_is_set() -> None:
    request = parsed(CompletionRequest)
    assert len({request.sampling(5).seed for _ in range(10)}) > 5
