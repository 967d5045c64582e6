"""OpenAI's API as types: what a request may contain, what an answer and an error look like.

What would change an answer and is not supported is refused by name, in the form of OpenAI's errors. It is not ignored.
https://platform.openai.com/docs/api-reference has the fields.
"""

import math
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json

from model.data import chat
from model.export.runtime import Prompt, Scored, Token
from model.sampling import GREEDY, Sampling

# Fields of OpenAI's that do not change what this model answers.
IGNORED = {
    *("user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"),
    *("prompt_cache_retention", "reasoning_effort", "verbosity", "prediction"),
}
# Fields that are supported with these values alone. Clients send them with their defaults.
NEUTRAL: dict[str, Sequence[object]] = {
    "n": [1],
    "best_of": [1],
    "presence_penalty": [0],
    "frequency_penalty": [0],
    "logit_bias": [{}],
    "tools": [[]],
    "functions": [[]],
    "tool_choice": ["none", "auto"],
    "function_call": ["none", "auto"],
    "response_format": [{"type": "text"}],
    "modalities": [["text"]],
    "audio": [],
    "web_search_options": [],
    "echo": [False],
    "suffix": [""],
}
SEEDS = 1 << 31  # that every runtime takes: seeds beyond are reduced to them


class ApiError(Exception):
    """An error that is the answer to a request."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status = status
        kind = "server_error" if status >= 500 else "invalid_request_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class _Part(BaseModel):
    type: Literal["text"]
    text: str


class _Message(BaseModel):
    """A message; what else clients send with it (`name`, `refusal`, …) does not change the prompt."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part] | None = None

    @property
    def plain(self) -> chat.Message:
        """As chat templates know it: the content is a text, and `developer` is OpenAI's newer name of `system`."""
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class _StreamOptions(BaseModel):
    include_usage: bool = False
    include_obfuscation: bool = False  # of no use here: it hides the lengths of tokens from who reads the network


Limit = Annotated[int, Field(ge=1)]
Choice = dict[str, Any]


class Request(BaseModel, ABC):
    """What the requests of both endpoints have, and the form of their answers."""

    model_config = ConfigDict(strict=True)

    model: str | None = None
    stream: bool = False
    stream_options: _StreamOptions | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None

    what: ClassVar[str]  # an answer is, in its `object`
    prefix: ClassVar[str]  # of its id

    @property
    @abstractmethod
    def continued(self) -> Prompt:
        """What the model continues."""

    @property
    @abstractmethod
    def limit(self) -> int | None:
        """Tokens of the answer at most; None: to the end of the context."""

    @property
    @abstractmethod
    def top(self) -> int | None:
        """The likeliest tokens that are reported for each; None: no log-probabilities."""

    @abstractmethod
    def whole(self, text: str, tokens: Sequence[Token], reason: str) -> Choice:
        """The choice of an answer that is complete."""

    @abstractmethod
    def opening(self) -> list[Choice]:
        """The choices with which a stream begins."""

    @abstractmethod
    def part(self, text: str, tokens: Sequence[Token], reason: str | None, before: int) -> Choice:
        """The choice of a part of a streamed answer, after so many letters `before`."""

    @property
    def stops(self) -> list[str]:
        """The texts before which an answer ends."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    def sampling(self, room: int) -> Sampling:
        """For an answer of at most `room` tokens."""
        temperature = 1.0 if self.temperature is None else self.temperature
        top_p = 1.0 if self.top_p is None else self.top_p
        return Sampling(
            limit=min(self.limit or room, room),
            temperature=0.0 if temperature < GREEDY or top_p == 0 else temperature,
            top_p=top_p or 1.0,
            seed=secrets.randbelow(SEEDS) if self.seed is None else self.seed % SEEDS,
        )

    @model_validator(mode="after")
    def _check(self) -> "Request":
        if not all(self.stops) or len(self.stops) > 4:
            raise ValueError("stop: one to four texts, none of them empty.")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only with stream = true.")
        return self


class ChatRequest(Request):
    """POST /v1/chat/completions."""

    messages: Annotated[list[_Message], Field(min_length=1)]
    max_tokens: Limit | None = None
    max_completion_tokens: Limit | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    what = "chat.completion"
    prefix = "chatcmpl"

    @property
    def continued(self) -> Prompt:
        return [message.plain for message in self.messages]

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def top(self) -> int | None:
        return self.top_logprobs or 0 if self.logprobs else None

    @model_validator(mode="after")
    def _check_logprobs(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: only with logprobs = true.")
        return self

    def whole(self, text: str, tokens: Sequence[Token], reason: str | None) -> Choice:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": 0, "message": message, "logprobs": self._logprobs(tokens), "finish_reason": reason}

    def part(self, text: str, tokens: Sequence[Token], reason: str | None, before: int) -> Choice:
        delta = {"content": text} if text or tokens else {}
        return {"index": 0, "delta": delta, "logprobs": self._logprobs(tokens), "finish_reason": reason}

    def opening(self) -> list[Choice]:
        return [{"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}]

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if self.top is None:
            return None
        entries = [
            {**_entry(token.scored), "top_logprobs": [_entry(other) for other in token.top]}
            for token in tokens
            if token.scored is not None
        ]
        return {"content": entries, "refusal": None}


class CompletionRequest(Request):
    """POST /v1/completions."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)]
    max_tokens: Limit | None = 16
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    what = "text_completion"
    prefix = "cmpl"

    @property
    def continued(self) -> Prompt:
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]

    @property
    def limit(self) -> int | None:
        return self.max_tokens

    @property
    def top(self) -> int | None:
        return self.logprobs

    def whole(self, text: str, tokens: Sequence[Token], reason: str | None) -> Choice:
        return self.part(text, tokens, reason, 0)

    def part(self, text: str, tokens: Sequence[Token], reason: str | None, before: int) -> Choice:
        return {"index": 0, "text": text, "logprobs": self._logprobs(tokens, before), "finish_reason": reason}

    def opening(self) -> list[Choice]:
        return []

    def _logprobs(self, tokens: Sequence[Token], before: int) -> dict[str, Any] | None:
        if self.top is None:
            return None
        offsets = []
        for token in tokens:
            offsets.append(before)
            before += len(token.text)
        known = [(token, token.scored, at) for token, at in zip(tokens, offsets, strict=True) if token.scored]
        return {
            "tokens": [itself.text for _, itself, _ in known],
            "token_logprobs": [_finite(itself.logprob) for _, itself, _ in known],
            "top_logprobs": [{other.text: _finite(other.logprob) for other in token.top} for token, _, _ in known],
            "text_offset": [at for _, _, at in known],
        }


def _entry(one: Scored) -> dict[str, Any]:
    part = "\ufffd" in one.text  # of a letter
    return {"token": one.text, "logprob": _finite(one.logprob), "bytes": None if part else list(one.text.encode())}


def _finite(logprob: float) -> float:
    """JSON has no infinity; this is what OpenAI writes of a token that cannot come."""
    return max(logprob, -9999.0)


class Usage(NamedTuple):
    """Tokens, the one that ends the answer among them."""

    prompt: int
    completion: int

    def to_dict(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        }


def envelope(request: Request, model: str, streamed: bool) -> dict[str, Any]:
    """What an answer, and each part of a streamed one, has beside its choices."""
    chunked = streamed and isinstance(request, ChatRequest)
    return {
        "id": f"{request.prefix}-{secrets.token_hex(12)}",
        "object": request.what + ".chunk" * chunked,
        "created": math.floor(time.time()),
        "model": model,
    }


def parse(kind: type[Request], body: bytes) -> Request:
    """A request of this kind. Raises ApiError for what is not JSON, has a wrong type, or is not supported."""
    try:
        raw = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"The body is not valid JSON: {error}.") from None
    if not isinstance(raw, dict):
        raise ApiError(400, "The body is not a JSON object.")
    for name, value in raw.items():
        if name in NEUTRAL and value is not None and value not in NEUTRAL[name]:
            only = " or ".join(map(repr, NEUTRAL[name])) or "null"
            raise ApiError(400, f"{name} = {value!r:.80} is not supported, only {only}.", name, "unsupported_value")
        if name not in kind.model_fields and name not in NEUTRAL and name not in IGNORED:
            raise ApiError(400, f"Unrecognized request argument supplied: {name}", name, "unknown_parameter")
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        name = where or message.partition(":")[0]
        raise ApiError(400, f"{where}: {message}." if where else message, name, "invalid_value") from None
