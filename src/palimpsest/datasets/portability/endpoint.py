"""A chat model behind HTTP, in the protocol that OpenAI's server began and most others speak (`/chat/completions`).

Only the standard library is used. A redirect is not followed: it would carry the key to another server.
"""

from __future__ import annotations

import json
import random
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException, HTTPMessage
from typing import IO, Any

from palimpsest.datasets.portability.asking import Message, NoProposal
from palimpsest.errors import ConfigError, DataError

LARGEST = 4_000_000
"""Most bytes of an answer; a longer one is refused."""
LONGEST_WAIT = 120.0
"""Seconds between two attempts, also when the server asks for more."""
_LIMITS = ("max_tokens", "max_completion_tokens")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class _Transient(Exception):
    """An attempt failed in a way that may pass; `wait` is what the server asked for, in seconds."""

    def __init__(self, problem: str, wait: float | None = None) -> None:
        super().__init__(problem)
        self.wait = wait


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str) -> None:
        return None


class Endpoint:
    """A chat model at a base URL, such as `https://host/v1`.

    Timeouts, refused connections, status 429 and 5xx and answers that are not of the protocol are tried again, each
    time after twice the wait, with some of it random, or after what the server asks for.

    Arguments:
        url: the base URL; `/chat/completions` is added.
        model: the model's name there.
        key: sent as a bearer token; never written anywhere.
        options: more fields of the request, such as `temperature`, which is 0 unless it is given.
        timeout: seconds for one whole attempt.
        retries: attempts after the first.
        requests_per_minute: most requests per minute; `None` for no limit.
        sleep: waits; for tests.

    Raises `ConfigError` for an invalid URL, and for a key that would go unencrypted to another machine.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str | None = None,
        options: Mapping[str, Any] | None = None,
        timeout: float = 60.0,
        retries: int = 4,
        requests_per_minute: float | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = _checked(url, has_key=bool(key))
        self.model = model
        limits = {} if any(name in (options or {}) for name in _LIMITS) else {"max_tokens": 800}
        self.options = {"temperature": 0, **limits, **(options or {})}
        self._key = key
        self._timeout = timeout
        self._retries = retries
        self._pause = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._sleep = sleep
        self._next = 0.0
        self._opener = urllib.request.build_opener(_NoRedirect)

    @property
    def identity(self) -> dict[str, Any]:
        return {"url": self.url, "model": self.model, "options": self.options}

    def complete(self, messages: Sequence[Message]) -> str:
        """The model's answer.

        Raises `NoProposal` when it refuses or is cut off, `ConfigError` when the request is wrong (key, model, option),
        `DataError` when the endpoint cannot be reached or does not speak the protocol, after all attempts.
        """
        given = {"model": self.model, "messages": [one.to_dict() for one in messages], **self.options}
        body = json.dumps(given).encode("utf-8")
        attempt = 0
        while True:
            self._keep_pace()
            try:
                return self._read(self._post(body))
            except _Transient as problem:
                if attempt == self._retries:
                    raise self._unreachable(str(problem)) from problem
                # Some of the wait is random, so that several who were refused together do not come back together.
                wait = 2.0**attempt * random.uniform(0.75, 1.25) if problem.wait is None else problem.wait
                self._sleep(min(wait, LONGEST_WAIT))
                attempt += 1

    def _keep_pace(self) -> None:
        now = time.monotonic()
        if now < self._next:
            self._sleep(self._next - now)
        self._next = max(now, self._next) + self._pause

    def _post(self, body: bytes) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "palimpsest"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(f"{self.url}/chat/completions", body, headers)  # noqa: S310 - _checked let http and https through only
        end = time.monotonic() + self._timeout
        try:
            with self._opener.open(request, timeout=self._timeout) as answer:
                content = _received(answer, end)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error) from error
        except TimeoutError as error:
            raise _Transient(f"no whole answer within {self._timeout:g} seconds") from error
        except urllib.error.URLError as error:
            raise _Transient(f"it cannot be reached: {error.reason}") from error
        except (OSError, HTTPException) as error:
            raise _Transient(f"the connection broke: {type(error).__name__} {error}".strip()) from error
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise _Transient(f"it answers with something that is not JSON: {content[:60]!r}") from error

    def _read(self, answer: Any) -> str:
        try:
            choice = answer["choices"][0]
            message = choice["message"]
            text, refusal = message.get("content"), message.get("refusal")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise _Transient(f"its answer has no choices[0].message: {str(answer)[:80]}") from error
        if refusal or choice.get("finish_reason") == "content_filter":
            raise NoProposal(f"the generator refuses: {str(refusal or 'content filter')[:120]}")
        if choice.get("finish_reason") == "length":
            raise NoProposal("the generator's answer was cut off; allow more tokens")
        if text is not None and not isinstance(text, str):
            raise _Transient(f"the content of its message is no text: {str(text)[:80]}")
        return text or ""

    def _refused(self, error: urllib.error.HTTPError) -> Exception:
        """Turns a status other than 2xx into an error."""
        said = _said(error)
        if error.code in (408, 409, 425, 429) or error.code >= 500:
            return _Transient(f"status {error.code}{said}", _seconds(error.headers.get("Retry-After")))
        remedies = {
            401: "set the key's environment variable, or name another with --key-variable",
            403: "set the key's environment variable, or name another with --key-variable",
            404: "check the base URL (it mostly ends in /v1) and the model's name",
        }
        return ConfigError(
            "The endpoint refuses the request.",
            expected="status 200",
            found=f"status {error.code}{said}",
            where=f"{self.url}, model {self.model!r}",
            remedy=remedies.get(error.code, "check the model's name and the options"),
        )

    def _unreachable(self, problem: str) -> DataError:
        return DataError(
            "The endpoint does not answer.",
            expected="an answer of the chat completions protocol",
            found=f"{problem} ({self._retries + 1} attempts)",
            where=self.url,
            remedy="check the URL, wait if it is busy, then run it again with --resume: what was answered is kept",
        )


def _checked(url: str, *, has_key: bool) -> str:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise ConfigError(
            "The endpoint's address cannot be read.",
            expected="a base URL such as https://host/v1, without a name or password in it",
            found=repr(url) if not parts.username else f"a URL with a user name in it, at {parts.hostname}",
        )
    if has_key and parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise ConfigError(
            "The key would be sent unencrypted.",
            expected="an https address, or one of this machine",
            found=repr(url),
            remedy="take https, or leave the key out",
        )
    return url.rstrip("/").removesuffix("/chat/completions")


def _received(answer: Any, end: float) -> bytes:
    """The body; a server that sends it drop by drop does not get more time than one that is silent."""
    content = b""
    while part := answer.read1(65536):
        content += part
        if time.monotonic() > end:
            raise TimeoutError
        if len(content) > LARGEST:
            raise _Transient(f"its answer is longer than {LARGEST} bytes")
    return content


def _said(error: urllib.error.HTTPError) -> str:
    """Returns a server's explanation of a refusal, as far as it can be parsed."""
    try:
        text = error.read(2000).decode("utf-8", "replace")
        found = json.loads(text)["error"]
        text = found["message"] if isinstance(found, dict) else str(found)
    except (OSError, HTTPException, ValueError, KeyError, TypeError, RecursionError):
        text = error.reason or ""
    return f": {' '.join(str(text).split())[:160]}" if text else ""


def _seconds(header: str | None) -> float | None:
    """A Retry-After in seconds; one that is a date is not followed."""
    return float(header) if header and header.isdigit() else None
