"""OpenAI's shapes: what requests may say, and how answers, pieces of answers and errors look."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from palimpsest.serving.choosing import WrittenToken
from palimpsest.serving.probabilities import chat_form, completion_form
from palimpsest.serving.writing import Piece, Written

_NOT_DONE = {
    "echo": False,
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
    # Strict: a number given as a text, or true for 1, is a mistake that would answer another question.
    model_config = ConfigDict(extra="allow", strict=True)

    model: str = Field(max_length=4096)
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(default=None, ge=1)

    @property
    def choices(self) -> int:
        """Texts for each prompt."""
        return self.n or 1

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(one for one in given if one)


class CompletionAsked(_Asked):
    """The body of a request to `/v1/completions`."""

    prompt: str | list[str]
    logprobs: int | None = Field(default=None, ge=0, le=5, strict=True)
    best_of: int | None = None

    @model_validator(mode="after")
    def _best(self) -> CompletionAsked:
        if self.best_of is not None and self.best_of != self.choices:
            raise PydanticCustomError("best_of", "best_of other than n is not supported here; leave it out")
        return self

    @property
    def likeliest(self) -> int | None:
        """How many likely tokens to name in each place; `None` for no probabilities."""
        return self.logprobs

    @property
    def prompts(self) -> list[str]:
        """The texts to go on with."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


# What pydantic puts into an error's place for one of several forms that a field may have.
_FORM = re.compile(r"str$|list\[")
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


class TemplateOptions(BaseModel):
    """What may be said to a chat template: whether the model thinks first, by the name of either family."""

    model_config = ConfigDict(extra="forbid")

    enable_thinking: bool | None = None
    thinking: bool | None = None


class ChatAsked(_Asked):
    """The body of a request to `/v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    chat_template_kwargs: TemplateOptions | None = None
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)

    @model_validator(mode="after")
    def _probabilities(self) -> ChatAsked:
        if self.top_logprobs is not None and not self.logprobs:
            raise PydanticCustomError("top_logprobs", "top_logprobs needs logprobs: true")
        return self

    @property
    def thinks(self) -> bool:
        """Whether the model is asked to think first."""
        options = self.chat_template_kwargs
        return options is not None and bool(options.enable_thinking or options.thinking)

    @property
    def likeliest(self) -> int | None:
        """See `CompletionAsked.likeliest`."""
        return (self.top_logprobs or 0) if self.logprobs else None


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
        place = list(first["loc"])
        # Where a field takes a text or a list, what is said of either form alone would mislead.
        forms = [number for number, part in enumerate(place) if isinstance(part, str) and _FORM.match(part)]
        field = ".".join(str(part) for part in place[: forms[0] if forms else None] if _is_field(part))
        # A rule over several fields names the one at fault.
        field = field or (first["type"] if first["type"] in kind.model_fields else "")
        message = "a text, or a list of texts, is expected" if forms else first["msg"]
        raise ApiError(400, f"{field}: {message}", param=field or None) from error


def _is_field(part: str | int) -> bool:
    return not isinstance(part, str) or part.islower()


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
        num_choices: texts for each prompt.
        is_likely: whether it says how likely its tokens were.
    """

    def __init__(self, model: str, *, is_chat: bool, num_choices: int = 1, is_likely: bool = False) -> None:
        self.model, self.is_chat, self.num_choices, self.is_likely = model, is_chat, num_choices, is_likely
        self.id = ("chatcmpl-" if is_chat else "cmpl-") + uuid.uuid4().hex
        self.created = int(time.time())

    def whole(self, texts: list[Written]) -> dict[str, Any]:
        """An answer that is not streamed."""
        choices = [self._choice(index, one) for index, one in enumerate(texts)]
        kind = "chat.completion" if self.is_chat else "text_completion"
        return {**self._frame(kind), "choices": choices, "usage": self._usage(texts)}

    def piece(self, sent: Piece | Written, *, index: int = 0, first: bool = False) -> str:
        """A piece of a streamed answer, or its end, as server-sent events have it.

        Arguments:
            sent: what is new; of a text that is finished the tokens that were in no piece.
            index: of the choice.
            first: whether it is the choice's first.
        """
        reason = sent.reason if isinstance(sent, Written) else None
        text = None if isinstance(sent, Written) else sent.text
        tokens = sent.tokens[len(sent.tokens) - sent.left :] if isinstance(sent, Written) else sent.tokens
        if self.is_chat:
            thought = sent.thought if isinstance(sent, Piece) else ""
            content = {} if text is None else thought_form(thought) if thought else {"content": text}
            said: dict[str, Any] = {"delta": {**({"role": "assistant"} if first else {}), **content}}
        else:
            said = {"text": text or ""}
        likelihoods = self._likelihoods(tokens) if tokens or reason is None else None
        choice = {"index": index, **said, "logprobs": likelihoods, "finish_reason": reason}
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        return event({**self._frame(kind), "choices": [choice]})

    def used(self, texts: list[Written]) -> str:
        """The last piece, where it was asked for: how many tokens there were."""
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        return event({**self._frame(kind), "choices": [], "usage": self._usage(texts)})

    def _frame(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _choice(self, index: int, one: Written) -> dict[str, Any]:
        thought = {} if one.thought is None else thought_form(one.thought)
        content = None if one.is_unfinished else one.text
        message = {"role": "assistant", **thought, "content": content, "refusal": None}
        said: dict[str, Any] = {"message": message} if self.is_chat else {"text": one.text}
        return {"index": index, **said, "logprobs": self._likelihoods(one.tokens), "finish_reason": one.reason}

    def _likelihoods(self, tokens: Sequence[WrittenToken]) -> dict[str, Any] | None:
        if not self.is_likely:
            return None
        return chat_form(tokens) if self.is_chat else completion_form(tokens)

    def _usage(self, texts: Sequence[Written]) -> dict[str, Any]:
        """Tokens that were read, once for all choices of a prompt, and written."""
        read = sum(one.prompt_tokens for one in texts[:: self.num_choices])
        made = sum(one.completion_tokens for one in texts)
        counts = {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}
        if all(one.thought is None for one in texts):
            return counts
        thought = sum(one.thought_tokens for one in texts)
        return {**counts, "completion_tokens_details": {"reasoning_tokens": thought}}


def thought_form(thought: str) -> dict[str, str]:
    """A thought beside an answer, under both names that clients know."""
    return {"reasoning_content": thought, "reasoning": thought}


def event(value: object) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


DONE = "data: [DONE]\n\n"
"""What ends a stream."""
