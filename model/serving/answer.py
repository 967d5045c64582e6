"""One answer at a time from a runtime, token by token, up to the first stop string."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from model.errors import KodaError
from model.export.runtime import Runtime, Token
from model.serving.openai_api import ApiError, Request, Usage

T = TypeVar("T")


class Piece(NamedTuple):
    """Text that cannot be part of a stop string any more, and the tokens that begin in it."""

    text: str
    tokens: list[Token]


class Cutter:
    """The tokens of an answer → its pieces, without the first stop string and what follows it."""

    def __init__(self, stops: Sequence[str]):
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._text = ""
        self._shown = 0  # letters
        self._waiting: list[tuple[int, Token]] = []  # with where they begin in the text
        self.found = False  # a stop string was

    def add(self, token: Token) -> Piece:
        """The piece that is complete with this token."""
        begin = len(self._text)
        if not token.ends:
            self._waiting.append((begin, token))
        self._text += token.text
        found = [at for stop in self._stops if (at := self._text.find(stop, max(0, begin - self._longest + 1))) >= 0]
        if found:
            self.found = True
            return self._until(min(found))
        return self._until(len(self._text) - self._begun())

    def rest(self) -> Piece:
        """What was held back at the end of the answer: it was no stop string after all."""
        return Piece(self._text[self._shown :], [token for _, token in self._waiting])

    def _begun(self) -> int:
        """How many letters at the end of the text may be the beginning of a stop string."""
        lengths = range(min(self._longest - 1, len(self._text)), 0, -1)
        return next((n for n in lengths if any(s.startswith(self._text[-n:]) for s in self._stops)), 0)

    def _until(self, end: int) -> Piece:
        text = self._text[self._shown : end]
        count = sum(begin < end for begin, _ in self._waiting)
        tokens, self._waiting = [token for _, token in self._waiting[:count]], self._waiting[count:]
        self._shown = max(end, self._shown)
        return Piece(text, tokens)


class Engine:
    """A runtime in a thread of its own, in which it is opened, too: MLX's arrays cannot be used in another."""

    def __init__(self, open_runtime: Callable[[], Runtime]):
        self.turn = asyncio.Lock()  # of one request after another, in the order in which they came
        self._thread = ThreadPoolExecutor(1, "runtime")
        self.runtime = self.submit(open_runtime).result()

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """What `function` returns, once the thread has come to it."""
        return await asyncio.wrap_future(self.submit(function, *arguments))

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """The same, for who does not wait for it."""
        return self._thread.submit(function, *arguments)


class Answer:
    """The answer to a request, computed while its pieces are read; `reason` and `usage` are known after the last."""

    def __init__(self, engine: Engine, request: Request):
        self._engine, self._request = engine, request
        self.reason = "length"
        self.usage = Usage(0, 0)

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """The first comes when it is this request's turn, and may be empty. Closing the iterator ends the computation.

        Raises ApiError, before the first piece, for a prompt that the model cannot continue.
        """
        engine, request = self._engine, self._request
        async with engine.turn:
            ids = await self._encode()
            sampling = request.sampling(engine.runtime.context - len(ids))
            tokens = engine.runtime.generate(ids, sampling, request.top)
            cutter = Cutter(request.stops)
            try:
                while (token := await engine.call(next, tokens, None)) is not None:
                    self.usage = Usage(len(ids), self.usage.completion + 1)
                    piece = cutter.add(token)
                    if token.ends or cutter.found:
                        self.reason = "stop"
                    yield piece
                    if cutter.found:
                        return
                yield cutter.rest()
            finally:  # not awaited, for a cancelled request awaits nothing; it comes before what the next one calls
                engine.submit(tokens.close)

    async def _encode(self) -> list[int]:
        """The prompt as ids, fewer than the context."""
        runtime, prompt = self._engine.runtime, self._request.continued
        name = "prompt" if isinstance(prompt, str) else "messages"
        try:
            ids = await self._engine.call(runtime.encode, prompt)
        except KodaError as error:
            raise ApiError(400, str(error), name, "invalid_prompt") from None
        if not ids:
            raise ApiError(400, "The prompt is empty: a model continues at least one token.", name, "invalid_prompt")
        if len(ids) >= runtime.context:
            raise ApiError(
                400,
                f"The prompt has {len(ids)} tokens, the context of this model {runtime.context}, for prompt and answer "
                "together. Shorten the prompt.",
                name,
                "context_length_exceeded",
            )
        return ids
