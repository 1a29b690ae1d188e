"""An endpoint on loopback in a thread, and a client that talks to it as any other does."""

import http.client
import json
import threading

from palimpsest.serving import Address, Catalogue, Engine, NamedPatch, build_app, open_socket, run


class Client:
    """Talks to an endpoint on loopback, as any HTTP client does."""

    def __init__(self, port, token=None):
        self.port, self.headers = port, {"Authorization": f"Bearer {token}"} if token else {}

    def ask(self, path, body=None, *, method=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        given = {"Content-Type": "application/json", **self.headers, **(headers or {})}
        connection.request(method or ("GET" if body is None else "POST"), path, content, given)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, text

    def json(self, *args, **options):
        status, text = self.ask(*args, **options)
        return status, json.loads(text)

    def events(self, path, body):
        status, text = self.ask(path, {**body, "stream": True})
        assert status == 200, text
        lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        assert lines[-1] == "[DONE]"
        return [json.loads(line) for line in lines[:-1]]


class Serving:
    """An endpoint in a thread."""

    def __init__(self, model, patches, **options):
        self.model = model
        catalogue = Catalogue(model, [NamedPatch(name, patch) for name, patch in patches.items()])
        self.engine = Engine(model, catalogue, most_waiting=options.pop("most_waiting", 64))
        self.app = build_app(self.engine, **options)

    def __enter__(self):
        self.listening = open_socket(Address("127.0.0.1", 0))
        ready = threading.Event()
        self.thread = threading.Thread(target=run, args=(self.app, self.listening), kwargs={"ready": ready.set})
        servers = []
        import uvicorn

        made = uvicorn.Server.__init__

        def keep(server, config):
            made(server, config)
            servers.append(server)

        uvicorn.Server.__init__ = keep
        try:
            self.thread.start()
            assert ready.wait(30)
        finally:
            uvicorn.Server.__init__ = made
        (self.server,) = servers
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join(30)
        self.listening.close()
        assert not self.thread.is_alive()

    def client(self, token=None):
        return Client(self.listening.getsockname()[1], token)
