"""The endpoint's addresses: `/v1/completions`, `/v1/chat/completions`, `/v1/models`, `/health`."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from palimpsest.errors import PalimpsestError
from palimpsest.models import Chat, Conversations, has_chat_template
from palimpsest.serving.engine import MOST_THOUGHT, ClosedError, Engine, TooBusyError
from palimpsest.serving.names import said_of
from palimpsest.serving.protocol import Answer, ApiError, ChatAsked, CompletionAsked, read_request
from palimpsest.serving.streaming import Pieces, as_api_error
from palimpsest.serving.writing import Wish

LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Limits:
    """How much a request may ask for.

    Arguments:
        body_bytes: of a request.
        prompts: texts in one request.
        tokens: to be written for one text.
        default_tokens: where a request does not say how many.
    """

    body_bytes: int = 1_000_000
    prompts: int = 16
    tokens: int = 1024
    default_tokens: int = 256


def build_app(
    engine: Engine, *, token: str | None = None, hosts: Collection[str] = LOOPBACK, limits: Limits | None = None
) -> Starlette:
    """The endpoint as an ASGI application; the engine is started with it and closed with it.

    Arguments:
        token: what requests have to carry as `Authorization: Bearer ...`; `None` for no such check.
        hosts: names that requests may call the machine by, so that no web page can reach it under a name of its own;
            an empty collection for any.
    """
    endpoint = _Endpoint(engine, token, hosts, limits or Limits())

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        engine.start()
        try:
            yield
        finally:
            await asyncio.to_thread(engine.close)

    routes = [
        Route("/health", endpoint.guarded(endpoint.health, is_open=True), methods=["GET"]),
        Route("/v1/models", endpoint.guarded(endpoint.models), methods=["GET"]),
        Route("/v1/models/{name:path}", endpoint.guarded(endpoint.model), methods=["GET"]),
        Route("/v1/completions", endpoint.guarded(endpoint.completions), methods=["POST"]),
        Route("/v1/chat/completions", endpoint.guarded(endpoint.chat), methods=["POST"]),
    ]
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _http_error})


async def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    words = {404: f"There is nothing at {request.url.path}.", 405: f"{request.method} is not taken here."}
    return _refused(ApiError(status, words.get(status, str(error)), code={404: "unknown_url"}.get(status)))


def _refused(error: ApiError) -> JSONResponse:
    headers = {"Retry-After": "1"} if error.status == 429 else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error.body(), error.status, headers)


Handler = Callable[[Request], Awaitable[Response]]


class _Endpoint:
    """Handlers of the addresses."""

    def __init__(self, engine: Engine, token: str | None, hosts: Collection[str], limits: Limits) -> None:
        self.engine, self.token, self.hosts, self.limits = engine, token, hosts, limits
        self.started = int(time.time())
        model = engine.model
        self.conversations = Conversations(model.tokenizer, where=f"model {model.name!r}")

    def guarded(self, handler: Handler, *, is_open: bool = False) -> Handler:
        """The handler behind the checks of host and token, its errors in OpenAI's shape.

        Arguments:
            is_open: whether it answers without a token.
        """

        async def guarded(request: Request) -> Response:
            try:
                self._check(request, is_open)
                return await handler(request)
            except ApiError as error:
                return _refused(error)
            except PalimpsestError as error:
                return _refused(as_api_error(error))
            except ClientDisconnect:
                return Response(status_code=499)

        return guarded

    def _check(self, request: Request, is_open: bool) -> None:
        if self.hosts and request.url.hostname not in self.hosts:
            raise ApiError(403, f"This endpoint is not called {request.url.hostname!r}.", code="unknown_host")
        if self.token is None or is_open:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.token.encode()):
            raise ApiError(401, "A valid token is needed: Authorization: Bearer TOKEN.", code="invalid_api_key")

    # Addresses

    async def health(self, _request: Request) -> Response:
        """Whether it is up, and how busy."""
        return JSONResponse({"status": "ok", "waiting": self.engine.num_waiting, "served": self.engine.served})

    async def models(self, _request: Request) -> Response:
        """Every model by name."""
        return JSONResponse({"object": "list", "data": self.engine.catalogue.described(self.started)})

    async def model(self, request: Request) -> Response:
        """One of them."""
        name = request.path_params["name"]
        self._patches(name)
        found = [one for one in self.engine.catalogue.described(self.started) if one["id"] == name]
        return JSONResponse(found[0] if found else {"id": name, "object": "model", "created": self.started})

    async def completions(self, request: Request) -> Response:
        """Goes on with texts."""
        asked = read_request(CompletionAsked, await self._body(request))
        patches = self._patches(asked.model)
        if not 1 <= len(asked.prompts) <= self.limits.prompts or not all(asked.prompts):
            raise ApiError(400, f"prompt: 1 to {self.limits.prompts} texts, none empty.", param="prompt")
        wish = self._wish(asked, asked.max_tokens)
        wishes = self._choices(asked, [replace(wish, prompt=prompt) for prompt in asked.prompts])
        return await self._answer(request, asked, patches, wishes, is_chat=False, chat=None)

    async def chat(self, request: Request) -> Response:
        """Says the assistant's next turn; a model without a chat template goes on with what was said."""
        asked = read_request(ChatAsked, await self._body(request))
        patches = self._patches(asked.model)
        turns = [message.turn() for message in asked.messages]
        has_template = has_chat_template(self.engine.model.tokenizer)
        if asked.thinks and not self.conversations.knows_thoughts:
            message = "chat_template_kwargs: the model's chat template knows no thoughts; leave enable_thinking out."
            raise ApiError(400, message, code="unsupported_parameter", param="chat_template_kwargs")
        chat: Chat | bool | None = None
        if has_template and [turn["role"] for turn in turns] == ["user"]:
            prompt, chat = turns[0]["content"], True
        elif has_template:
            prompt, chat = self._conversation(turns, thinks=asked.thinks)
        else:
            prompt = "\n".join(turn["content"] for turn in turns)
        if not prompt:
            raise ApiError(400, "messages: nothing is said in them.", param="messages")
        tokens = asked.max_completion_tokens or asked.max_tokens or (self.limits.tokens if asked.thinks else None)
        wish = replace(self._wish(asked, tokens), prompt=prompt, thinks=asked.thinks)
        return await self._answer(request, asked, patches, self._choices(asked, [wish]), is_chat=True, chat=chat)

    # What they have in common

    async def _body(self, request: Request) -> bytes:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "The body has to be JSON: Content-Type: application/json.")
        most, body = self.limits.body_bytes, bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                raise ApiError(413, f"The body is larger than {most:,} bytes.", code="request_too_large")
        return bytes(body)

    def _patches(self, name: str) -> tuple[str, ...]:
        try:
            return self.engine.catalogue.chosen(name)
        except LookupError as error:
            raise ApiError(404, str(error.args[0]), code="model_not_found", param="model") from error

    def _wish(self, asked: CompletionAsked | ChatAsked, tokens: int | None) -> Wish:
        if tokens is not None and tokens > self.limits.tokens:
            raise ApiError(400, f"max_tokens: at most {self.limits.tokens} here.", param="max_tokens")
        if len(asked.stops) > self.limits.prompts:
            raise ApiError(400, f"stop: at most {self.limits.prompts} texts.", param="stop")
        return Wish(
            prompt="",
            max_tokens=tokens or self.limits.default_tokens,
            stops=asked.stops,
            temperature=asked.temperature or 0.0,
            top_p=asked.top_p or 1.0,
            seed=asked.seed or 0,
            likeliest=asked.likeliest,
        )

    def _choices(self, asked: CompletionAsked | ChatAsked, wishes: Sequence[Wish]) -> list[Wish]:
        """Each wish as often as choices are asked for; the first with the request's seed, each other with one more."""
        if len(wishes) * asked.choices > self.limits.prompts:
            raise ApiError(400, f"n: at most {self.limits.prompts} texts in one request here.", param="n")
        return [replace(wish, seed=wish.seed + number) for wish in wishes for number in range(asked.choices)]

    def _conversation(self, turns: Sequence[dict[str, str]], *, thinks: bool) -> tuple[str, Chat]:
        tokens = MOST_THOUGHT if thinks else 0
        try:
            return self.conversations.of(turns, thought_tokens=tokens)
        except PalimpsestError as error:
            raise ApiError(400, f"messages: {said_of(error)}", param="messages") from error
        except Exception as error:  # a template is a program, and its errors are of any kind
            message = f"messages: the model's chat template does not take them ({type(error).__name__}: {error})."
            raise ApiError(400, message, param="messages") from error

    async def _answer(
        self,
        request: Request,
        asked: CompletionAsked | ChatAsked,
        patches: tuple[str, ...],
        wishes: Sequence[Wish],
        *,
        is_chat: bool,
        chat: Chat | bool | None,
    ) -> Response:
        answer = Answer(asked.model, is_chat=is_chat, num_choices=asked.choices, is_likely=asked.likeliest is not None)
        pieces = Pieces(patches, wishes, chat=chat)
        try:
            self.engine.submit(*pieces.jobs)
        except TooBusyError as error:
            message = f"{self.engine.most_waiting} requests wait already; try again."
            raise ApiError(429, message, kind="rate_limit_error", code="too_many_requests") from error
        except ClosedError as error:
            raise as_api_error(error) from error
        if asked.stream:
            # An error before the first piece is an answer with its own status.
            first = await pieces.next(request)
            options = asked.stream_options
            events = pieces.events(answer, first, has_usage=options is not None and options.include_usage)
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        return JSONResponse(answer.whole(await pieces.whole(request)))
