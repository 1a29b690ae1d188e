"""OpenAI's shapes: what requests may say, and how answers, pieces of answers and errors look."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from palimpsest.serving.writing import Written

_NOT_DONE = {
    "n": 1,
    "best_of": 1,
    "echo": False,
    "logprobs": None,
    "top_logprobs": None,
    "logit_bias": None,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "suffix": None,
    "tools": None,
    "tool_choice": None,
    "functions": None,
    "function_call": None,
    "response_format": None,
}
"""Fields that would change the answer and are not done, with the one value that may be given."""


class ApiError(Exception):
    """An answer that is an error.

    Arguments:
        status: the HTTP status.
        message: for a person.
        kind: OpenAI's `type`.
        code: OpenAI's `code`.
        param: the field at fault.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.code, self.param = status, message, kind, code, param

    def body(self) -> dict[str, Any]:
        """As OpenAI writes an error."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


class StreamOptions(BaseModel):
    """Further options of a stream."""

    include_usage: bool = False


class _Asked(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: str = Field(max_length=4096)
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(one for one in given if one)


class CompletionAsked(_Asked):
    """The body of a request to `/v1/completions`."""

    prompt: str | list[str]

    @property
    def prompts(self) -> list[str]:
        """The texts to go on with."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


Asked = TypeVar("Asked", bound=_Asked)


class TextPart(BaseModel):
    """A piece of a message; others than text are refused."""

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @property
    def text(self) -> str:
        """The message's text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)

    def turn(self) -> dict[str, str]:
        """As chat templates take it."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.text}


class ChatAsked(_Asked):
    """The body of a request to `/v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)


def read_request(kind: type[Asked], body: bytes) -> Asked:
    """A request's body. Raises `ApiError`, status 400, that names the field."""
    try:
        record = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "The body is not JSON.") from error
    if not isinstance(record, dict):
        raise ApiError(400, "The body is not a JSON object.")
    _refuse_undone(record)
    try:
        return kind.model_validate(record)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"] if not isinstance(part, str) or part.islower())
        raise ApiError(400, f"{field}: {first['msg']}", param=field or None) from error


def _refuse_undone(record: Mapping[str, Any]) -> None:
    for name, allowed in _NOT_DONE.items():
        value = record.get(name)
        is_text = name == "response_format" and value == {"type": "text"}
        if value in (None, allowed, [], {}) or is_text:
            continue
        raise ApiError(400, f"{name} is not supported here; leave it out.", code="unsupported_parameter", param=name)


class Answer:
    """The frame of one answer, for the whole and for its pieces.

    Arguments:
        model: the name that was asked for.
        is_chat: whether it is of `/v1/chat/completions`.
    """

    def __init__(self, model: str, *, is_chat: bool) -> None:
        self.model, self.is_chat = model, is_chat
        self.id = ("chatcmpl-" if is_chat else "cmpl-") + uuid.uuid4().hex
        self.created = int(time.time())

    def whole(self, texts: list[Written]) -> dict[str, Any]:
        """An answer that is not streamed."""
        choices = [self._choice(index, one.text, one.reason) for index, one in enumerate(texts)]
        kind = "chat.completion" if self.is_chat else "text_completion"
        return {**self._frame(kind), "choices": choices, "usage": usage(texts)}

    def piece(self, text: str | None, reason: str | None = None, *, index: int = 0, first: bool = False) -> str:
        """A piece of a streamed answer, as server-sent events have it."""
        if self.is_chat:
            delta = {**({"role": "assistant"} if first else {}), **({} if text is None else {"content": text})}
            choice: dict[str, Any] = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        else:
            choice = {"index": index, "text": text or "", "logprobs": None, "finish_reason": reason}
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        return event({**self._frame(kind), "choices": [choice]})

    def used(self, texts: list[Written]) -> str:
        """The last piece, where it was asked for: how many tokens there were."""
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        return event({**self._frame(kind), "choices": [], "usage": usage(texts)})

    def _frame(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _choice(self, index: int, text: str, reason: str) -> dict[str, Any]:
        said = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.is_chat else {"text": text}
        return {"index": index, **said, "logprobs": None, "finish_reason": reason}


def usage(texts: list[Written]) -> dict[str, int]:
    """Tokens that were read and written."""
    read, made = sum(one.prompt_tokens for one in texts), sum(one.completion_tokens for one in texts)
    return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}


def event(value: object) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


DONE = "data: [DONE]\n\n"
"""What ends a stream."""
