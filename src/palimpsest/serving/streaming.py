"""Answers on their way: pieces from the engine's thread, as server-sent events or put together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import Any

from starlette.requests import ClientDisconnect, Request

from palimpsest.errors import PalimpsestError
from palimpsest.models import Chat
from palimpsest.serving.engine import ClosedError, TextJob
from palimpsest.serving.names import said_of
from palimpsest.serving.protocol import DONE, Answer, ApiError, event
from palimpsest.serving.writing import Abandoned, Wish, Written

_LISTENS_EVERY = 0.2


class Pieces:
    """The jobs of one request, and what they send, in the order in which it comes.

    Arguments:
        patches: names of the patches that are to lie on the model.
        wishes: one text each.
        chat: the texts around the prompts; see `TextJob`.
    """

    def __init__(self, patches: tuple[str, ...], wishes: Sequence[Wish], *, chat: Chat | bool | None) -> None:
        self._loop, self._queue = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Any]]()
        self.jobs = [
            TextJob(patches, wish, chat, self._sender(index), self._sender(index)) for index, wish in enumerate(wishes)
        ]

    def _sender(self, index: int) -> Callable[[Any], None]:
        def put(value: Any) -> None:
            # The loop may be gone when the engine ends what it had begun.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, value))

        return put

    async def next(self, request: Request) -> tuple[int, Any]:
        """The next piece, and whose it is; an error is raised, and a client that has left ends the jobs."""
        try:
            while True:
                try:
                    index, value = await asyncio.wait_for(self._queue.get(), _LISTENS_EVERY)
                except TimeoutError:
                    if await request.is_disconnected():
                        raise ClientDisconnect from None
                    continue
                if isinstance(value, Exception):
                    raise as_api_error(value) from value
                return index, value
        except BaseException:
            self.abandon()
            raise

    async def whole(self, request: Request) -> list[Written]:
        """Every text, when all are written."""
        found: dict[int, Written] = {}
        try:
            while len(found) < len(self.jobs):
                index, value = await self.next(request)
                if isinstance(value, Written):
                    found[index] = value
        finally:
            self.abandon()
        return [found[index] for index in range(len(self.jobs))]

    async def events(self, answer: Answer, first: tuple[int, Any], *, has_usage: bool) -> AsyncIterator[str]:
        """The pieces as server-sent events.

        Arguments:
            first: the piece that has been waited for.
            has_usage: whether the number of tokens comes last.
        """
        found: dict[int, Written] = {}
        begun: set[int] = set()
        try:
            index, value = first
            while True:
                if isinstance(value, Exception):
                    yield event(as_api_error(value).body())
                    return
                if isinstance(value, Written):
                    found[index] = value
                yield answer.piece(value, index=index, first=index not in begun)
                begun.add(index)
                if len(found) == len(self.jobs):
                    break
                index, value = await self._queue.get()
            if has_usage:
                yield answer.used([found[index] for index in range(len(self.jobs))])
            yield DONE
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Ends the jobs that are not done."""
        for job in self.jobs:
            job.is_abandoned.set()


def as_api_error(error: Exception) -> ApiError:
    """An error of any kind in OpenAI's shape."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, PalimpsestError):
        is_long = "context" in error.problem or "room" in error.problem
        return ApiError(400, said_of(error), code="context_length_exceeded" if is_long else None)
    if isinstance(error, ClosedError | Abandoned):
        return ApiError(503, "The endpoint is shutting down.", kind="server_error", code="shutting_down")
    return ApiError(500, f"The model failed: {type(error).__name__}.", kind="server_error")
