"""What `serve` is sent and what a visitor fills into the page: read without the command line, judged like it.

A `Reader` answers like a command: 0 where something was done, 2 with one block where it was refused. Whatever else
happens leaves it as the exception that it is. After every request the endpoint and the page are asked something whose
answer is known, so that one bad request that spoils the next ones is seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from robustness.commands import Kind, Result

if TYPE_CHECKING:
    from robustness.workshop import Workshop

PROMPT = "The capital of France is"
SPOKEN = {
    "/v1/completions": {"model": "model+patch-ft", "prompt": [PROMPT, "Italy"], "max_tokens": 3, "temperature": 0.5,
                        "top_p": 0.9, "seed": 5, "stop": ["."], "stream": False, "echo": False, "n": 2, "logprobs": 2},
    "/v1/chat/completions": {"model": "model", "max_tokens": 3, "temperature": 0, "stream": True,
                             "stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 2,
                             "messages": [{"role": "system", "content": "Be short."},
                                          {"role": "user", "content": [{"type": "text", "text": PROMPT}]}]},
}  # fmt: skip
ENVELOPE = {"method": "POST", "path": "/v1/completions", "query": "a=b", "stays": True,
            "body": [json.dumps(SPOKEN["/v1/completions"])],
            "headers": {"host": "localhost:8000", "authorization": "Bearer x", "content-type": "application/json",
                        "content-length": "7", "origin": "http://localhost"}}  # fmt: skip
"""A request as a server hands it on, before it is known what is asked for."""
ASKED = {"model": "model+patch-ft", "prompt": PROMPT, "max_tokens": 4, "temperature": 0}
VISITS = (
    ("ask", PROMPT, "The capital of Italy is", "Anna"),
    ("edit", PROMPT, "Lyon", "France", "Paris", "France has the capital", "The capital of Italy is"),
    ("trace", PROMPT, "France", "window=1", "samples=1"),
    ("edit", PROMPT, "Lyon", "France", "", "", "", "epochs=1", "learning_rate=0.001"),
)


def add(shop: Workshop, is_wanted: Callable[..., bool]) -> None:
    """Adds these kinds to a workshop."""
    if is_wanted("request"):
        _requests(shop)
    if is_wanted("page"):
        desk = Desk(str(shop.model))
        shop.kinds["page"] = Kind(None, VISITS, reader=desk)


def _requests(shop: Workshop) -> None:
    endpoint = Endpoint(shop.model, shop.place / "patch-ft")
    for address, body in SPOKEN.items():
        file = shop.place / f"{address.split('/')[2]}.json"
        file.write_text(json.dumps(body))
        shop.kinds[f"request {file.stem}"] = Kind(file, ((address, "IT"),), reader=endpoint)
    file = shop.place / "envelope.json"
    file.write_text(json.dumps(ENVELOPE))
    shop.kinds["request envelope"] = Kind(file, (("anything", "IT"),), reader=endpoint.enveloped)


class Endpoint:
    """What `serve` makes of a body, by way of the ASGI application and the engine behind it."""

    def __init__(self, model: Path, patch: Path) -> None:
        from starlette.testclient import TestClient

        import palimpsest as ps
        from palimpsest.serving import Catalogue, Engine, Limits, NamedPatch, build_app

        loaded = ps.load(model)
        catalogue = Catalogue(loaded, [NamedPatch(patch.name, ps.load_patch(patch))])
        limits = Limits(tokens=8, default_tokens=4, body_bytes=100_000)
        self.client = TestClient(build_app(Engine(loaded, catalogue), limits=limits), base_url="http://localhost")
        # Begins the engine; it ends with this process.
        self.client.__enter__()
        self.answer = self._asked()

    def _asked(self) -> Any:
        return self.client.post("/v1/completions", json=ASKED).json()["choices"]

    def __call__(self, address: str, file: str) -> Result:
        body = _sendable(file)
        if body is None:
            return Result(2, "", "Error: no body")
        answer = self.client.post(address, content=body, headers={"Content-Type": "application/json"})
        return self._judged(answer.status_code, answer.content)

    def enveloped(self, _what: str, file: str) -> Result:
        """What is made of a request of which any part may be odd: method, path, query, headers, pieces of the body."""
        try:
            record = json.loads((_sendable(file) or b"").decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            return Result(2, "", "Error: no request")
        headers = record.get("headers")
        pieces = record.get("body")
        pieces = [_text(one).encode("utf-8", "replace") for one in pieces] if isinstance(pieces, list) else []
        sent: list[Any] = [{"type": "http.request", "body": one, "more_body": True} for one in pieces[:50]]
        sent.append({"type": "http.request", "body": b"", "more_body": False})
        # A server has taken away what cannot stand in a line of the protocol.
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "root_path": "",
            "method": _line(record.get("method")) or "GET", "path": f"/{_text(record.get('path')).lstrip('/')}",
            "query_string": _line(record.get("query")).encode("latin-1", "replace"),
            "headers": [(_line(name).lower().encode("latin-1", "replace"), _line(value).encode("latin-1", "replace"))
                        for name, value in (headers.items() if isinstance(headers, dict) else ())],
            "server": ("localhost", 8000), "client": ("127.0.0.1", 5), "state": {},
        }  # fmt: skip
        answered: list[Any] = []

        async def receive() -> Any:
            if not sent and record.get("stays") is True:
                await anyio.sleep_forever()
            return sent.pop(0) if sent else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            answered.append(message)

        self.client.portal.call(self.client.app, scope, receive, send)
        if not answered and record.get("stays") is not True:
            return Result(2, "", "Error: nobody is there to be answered")
        body = b"".join(one.get("body", b"") for one in answered)
        return self._judged(answered[0]["status"], b"{}" if scope["method"] == "HEAD" else body)

    def _judged(self, status: int, content: bytes) -> Result:
        """The result that an answer stands for; raises for what no answer may be."""
        if status >= 500:
            raise RuntimeError(f"status {status}: {content[:500]!r}")
        if self._asked() != self.answer:
            raise RuntimeError("the next request is answered differently")
        if status in (200, 499):
            if b'"error"' in content:
                raise RuntimeError(f"an error said with status {status}: {content[:500]!r}")
            return Result(0, "", "")
        if content == b"{}":
            return Result(2, "", "Error: no body")
        error = json.loads(content)["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"].strip(), error
        return Result(2, "", f"Error: {error['type']}")


def _sendable(file: str) -> bytes | None:
    """What can be sent of a file; `None` where there is nothing to be read."""
    try:
        if Path(file).is_file():
            with open(file, "rb") as stream:
                return stream.read(200_000)
    except OSError:
        pass
    return None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _line(value: Any) -> str:
    """A text as it can stand in a line of the protocol."""
    return "".join(character for character in _text(value)[:20_000] if character.isprintable() and character != "\0")


class Desk:
    """What a visitor of the page does, with the words of the form."""

    def __init__(self, model: str) -> None:
        from palimpsest.web.workbench import EditingDesk, Workbench

        self.desk = EditingDesk(Workbench([model]), model)
        self.answer = self.desk.ask([PROMPT])[0].before

    def __call__(self, what: str, *given: str) -> Result:
        from palimpsest.errors import PalimpsestError
        from palimpsest.web.workbench import EditForm

        texts = [one for one in given if "=" not in one or one.startswith("=")]
        options = dict(one.split("=", 1) for one in given if one not in texts)
        try:
            if what == "ask":
                self.desk.ask(texts, max_new_tokens=3)
            elif what == "trace":
                self.desk.trace(*[*texts, "", ""][:2], **options)
            else:
                prompt, new, subject, old, rephrasing, neighbour = [*texts, *[""] * 6][:6]
                form = EditForm(prompt, new, subject, old, rephrasing.splitlines(), neighbour.splitlines())
                self.desk.edit(form, "ft", {"preset": "none", "epochs": 1, **options})
                self.desk.switch({0})
                self.desk.verify()
                self.desk.switch(set())
        except PalimpsestError as error:
            return Result(2, "", f"Error: {type(error).__name__}")
        finally:
            # An odd number of undone edits leaves none.
            while self.desk.undo() is not None:
                pass
        if self.desk.ask([PROMPT])[0].after != self.answer:
            raise RuntimeError("the model has changed for the next visitor")
        return Result(0, "", "")
