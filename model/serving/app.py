"""The server: OpenAI's API for one model, and a page to chat with it."""

import json
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Send

from model.errors import one_line
from model.export.runtime import Token
from model.serving.answer import Answer, Engine, Piece
from model.serving.guard import Guard
from model.serving.openai_api import ApiError, ChatRequest, CompletionRequest, Request, envelope, parse

PAGE = Path(__file__).with_name("page.html")
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
GONE = 499  # a client that hung up; nobody reads it

T = TypeVar("T")


def application(engine: Engine, name: str, key: str, local: bool) -> Starlette:
    """The server of a model called `name`. `key`: what clients must know; empty: nothing. `local`: see Guard."""
    service = Service(engine, name)
    return Starlette(
        routes=[
            Route("/", service.page),
            Route("/v1/models", service.models),
            Route("/v1/models/{name:path}", service.model),
            Route("/v1/chat/completions", service.chat, methods=["POST"]),
            Route("/v1/completions", service.complete, methods=["POST"]),
        ],
        middleware=[Middleware(Guard, key=key, local=local)],
        exception_handlers={ApiError: _refused, HTTPException: _no_such_thing, Exception: _failed},
    )


class Service:
    """What the addresses answer."""

    def __init__(self, engine: Engine, name: str):
        self.engine, self.name = engine, name
        self.described = {
            "id": name,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "koda",
            "context_length": engine.runtime.context,
        }

    async def page(self, _: HttpRequest) -> Response:
        return HTMLResponse(PAGE.read_bytes(), headers=PAGE_HEADERS)

    async def models(self, _: HttpRequest) -> Response:
        return JSONResponse({"object": "list", "data": [self.described]})

    async def model(self, request: HttpRequest) -> Response:
        self._check(request.path_params["name"])
        return JSONResponse(self.described)

    async def chat(self, request: HttpRequest) -> Response:
        return await self._respond(request, ChatRequest)

    async def complete(self, request: HttpRequest) -> Response:
        return await self._respond(request, CompletionRequest)

    def _check(self, name: str | None) -> None:
        if name not in (None, self.name):
            message = f"The model {name!r} does not exist: this server has {self.name!r}."
            raise ApiError(404, message, "model", "model_not_found")

    async def _respond(self, request: HttpRequest, kind: type[Request]) -> Response:
        asked = parse(kind, await request.body())
        self._check(asked.model)
        answer = Answer(self.engine, asked)
        try:
            if not asked.stream:
                return JSONResponse(await _while_connected(request, self._whole(asked, answer)))
            pieces = answer.pieces()
            first = await _while_connected(request, anext(pieces))  # an error of the prompt has a status of its own
        except Disconnected:
            return Response(status_code=GONE)
        except ApiError:
            raise
        except Exception as error:  # as ApiError: Starlette ends the connection after any other
            raise _report(error) from error
        return EventStream(self._events(asked, answer, first, pieces))

    async def _whole(self, asked: Request, answer: Answer) -> dict[str, Any]:
        text, tokens = "", list[Token]()
        async for piece in answer.pieces():
            text += piece.text
            tokens += piece.tokens
        choice = asked.whole(text, tokens, answer.reason)
        return {**envelope(asked, self.name, False), "choices": [choice], "usage": answer.usage.to_dict()}

    async def _events(
        self, asked: Request, answer: Answer, first: Piece, pieces: AsyncGenerator[Piece, None]
    ) -> AsyncGenerator[str, None]:
        """The parts of the answer as server-sent events, the last of them `[DONE]`."""
        common = envelope(asked, self.name, True)
        with_usage = asked.stream_options is not None and asked.stream_options.include_usage
        no_usage = {"usage": None} if with_usage else {}
        for choice in asked.opening():
            yield _event({**common, "choices": [choice], **no_usage})
        before = 0
        try:
            async with aclosing(pieces):
                async for piece in _chain(first, pieces):
                    if piece.text or (piece.tokens and asked.top is not None):
                        choice = asked.part(piece.text, piece.tokens, None, before)
                        before += len(piece.text)
                        yield _event({**common, "choices": [choice], **no_usage})
        except Exception as error:
            yield _event(_report(error).body)
            return
        yield _event({**common, "choices": [asked.part("", [], answer.reason, before)], **no_usage})
        if with_usage:
            yield _event({**common, "choices": [], "usage": answer.usage.to_dict()})
        yield "data: [DONE]\n\n"


class EventStream(StreamingResponse):
    """Server-sent events of a generator that is closed at once when the client hangs up."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str, None]):
        super().__init__(events, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self.events = events

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self.events):
            await super().stream_response(send)


class Disconnected(Exception):
    """The client hung up before its answer was complete."""


async def _while_connected(request: HttpRequest, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client hangs up. Raises Disconnected then."""
    results: list[T] = []
    failures: list[Exception] = []

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        try:
            results.append(await work)
        except Exception as error:  # out of the group, which would wrap it
            failures.append(error)
        group.cancel_scope.cancel()
    if failures:
        raise failures[0]
    if not results:
        raise Disconnected
    return results[0]


async def _chain(first: Piece, rest: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
    yield first
    async for piece in rest:
        yield piece


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, separators=(',', ':'))}\n\n"


def _report(error: Exception) -> ApiError:
    """An error of the runtime, for the client and, on a line, for who runs the server."""
    print(f"koda: {one_line(error)}", file=sys.stderr, flush=True)
    return ApiError(500, f"The model failed: {one_line(error)}", code="internal_error")


async def _refused(_: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, error.status)


async def _no_such_thing(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}."
    return JSONResponse(ApiError(error.status_code, message, code="unknown_url").body, error.status_code, error.headers)


async def _failed(_: HttpRequest, error: Exception) -> Response:
    return JSONResponse(_report(error).body, 500)
