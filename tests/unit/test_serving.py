"""`palimpsest serve`: OpenAI's protocol, patches by request, nothing lost or mixed up, errors in OpenAI's shape."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import palimpsest as ps
import tiny
from palimpsest.patches.base import Manifest
from palimpsest.patches.weights import LowRank, WeightPatch
from palimpsest.serving import Address, Catalogue, Engine, Limits, NamedPatch, build_app, open_socket, run

PROMPTS = ["The capital of France is", "The capital of Japan is", "The capital of Italy is", "Paris is the capital of"]
SHORT = {"max_tokens": 4, "temperature": 0}


def patch_of(model, seed):
    """A change by hand that makes a model say something else."""
    torch.manual_seed(seed)
    name = [one for one in model.weights.names() if one.endswith(("mlp.fc_out.weight", "down_proj.weight"))][-1]
    rows, columns = model.weights.shape(name)
    size = float(model.weights.base(name).norm())
    delta = LowRank(torch.randn(rows, 2), torch.randn(2, columns))
    edits = [{"id": "1", "prompt": "The capital of France is", "target_new": "Lyon", "probes": []}]
    manifest = Manifest(label=f"by hand {seed}", base=model.fingerprint([name]), edits=edits)
    return WeightPatch({name: delta.scaled(4 * size / float(delta.dense().norm()))}, manifest)


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


@pytest.fixture(scope="module")
def model():
    return ps.load("world")


@pytest.fixture(scope="module")
def patches(model):
    return {"one": patch_of(model, 1), "two": patch_of(model, 2)}


@pytest.fixture(scope="module")
def serving(model, patches):
    with Serving(model, patches, limits=Limits(tokens=64, body_bytes=50_000)) as found:
        yield found


@pytest.fixture(scope="module")
def client(serving):
    return serving.client()


@pytest.fixture(scope="module")
def expected(patches):
    """What each model says, computed one at a time and in process, by a model of its own."""
    model, found = ps.load("world"), {}
    for name, those in {
        "world": [],
        "world+one": ["one"],
        "world+two": ["two"],
        "world+one+two": ["one", "two"],
    }.items():
        for one in those:
            patches[one].apply(model)
        for prompt in PROMPTS:
            found[name, prompt] = model.generate(prompt, max_new_tokens=4, until=())
        model.weights.unwind(0)
    return found


def test_two_hundred_requests_at_once_are_what_each_is_alone(client, expected, serving):
    assert len(set(expected.values())) > 2 * len(PROMPTS)
    cases = [list(expected)[index % len(expected)] for index in range(200)]

    def ask(index):
        name, prompt = cases[index]
        if index % 3 == 0:
            pieces = client.events("/v1/completions", {"model": name, "prompt": prompt, **SHORT})
            return "".join(piece["choices"][0]["text"] for piece in pieces)
        status, found = client.json("/v1/completions", {"model": name, "prompt": prompt, **SHORT})
        assert status == 200 and found["model"] == name, found
        return found["choices"][0]["text"]

    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(ask, range(len(cases))))
    assert [text for text, case in zip(texts, cases, strict=True) if text != expected[case]] == []
    assert len(texts) == 200 and serving.engine.served >= 200


def test_the_model_is_the_base_again_when_it_has_ended(patches):
    fresh = ps.load("world")
    before = {name: value.clone() for name, value in fresh.module.state_dict().items()}
    with Serving(fresh, patches) as own:
        own.client().json("/v1/completions", {"model": "base+one", "prompt": PROMPTS[0], **SHORT})
    assert own.model.weights.labels == []
    assert all(torch.equal(value, before[name]) for name, value in own.model.module.state_dict().items())


def test_several_prompts_and_chat_have_openai_s_shapes(client, expected):
    status, found = client.json("/v1/completions", {"model": "base+one", "prompt": PROMPTS[:2], **SHORT})
    assert status == 200 and found["object"] == "text_completion"
    assert [one["text"] for one in found["choices"]] == [expected["world+one", prompt] for prompt in PROMPTS[:2]]
    assert [one["index"] for one in found["choices"]] == [0, 1]
    usage = found["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 0
    body = {"model": "world", "messages": [{"role": "user", "content": PROMPTS[0]}], **SHORT}
    status, found = client.json("/v1/chat/completions", body)
    assert status == 200 and found["object"] == "chat.completion"
    message = found["choices"][0]["message"]
    assert (message["role"], message["content"]) == ("assistant", expected["world", PROMPTS[0]])
    pieces = client.events("/v1/chat/completions", {**body, "stream_options": {"include_usage": True}})
    assert pieces[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(one["choices"][0]["delta"].get("content", "") for one in pieces[:-1]) == message["content"]
    assert pieces[-2]["choices"][0]["finish_reason"] in ("stop", "length")
    assert pieces[-1]["usage"] == found["usage"] and pieces[-1]["choices"] == []


def test_stops_end_a_text_and_are_never_sent(client, expected):
    whole = expected["world", PROMPTS[0]]
    stop = whole[3:5]
    body = {"model": "world", "prompt": PROMPTS[0], **SHORT, "stop": [stop, "never said"]}
    pieces = client.events("/v1/completions", body)
    assert "".join(one["choices"][0]["text"] for one in pieces) == whole[: whole.index(stop)]
    assert pieces[-1]["choices"][0]["finish_reason"] == "stop"


def test_samples_follow_from_the_seed(client):
    def texts(**options):
        body = {"model": "world", "prompt": "The", "max_tokens": 12, **options}
        return [client.json("/v1/completions", {**body, "seed": seed})[1]["choices"][0]["text"] for seed in (1, 2, 3)]

    warm = texts(temperature=1.5)
    assert warm == texts(temperature=1.5) and len(set(warm)) > 1
    assert len(set(texts(temperature=0))) == 1
    # Of the likeliest tokens that together have next to no probability there is one.
    assert texts(temperature=1.5, top_p=1e-6) == texts(temperature=0)


def test_models_are_listed_with_their_patches(client):
    status, found = client.json("/v1/models")
    assert status == 200
    assert [(one["id"], one["parent"], one["edits"]) for one in found["data"]] == [
        ("world", None, 0),
        ("world+one", "world", 1),
        ("world+two", "world", 1),
    ]
    assert client.json("/v1/models/world+two+one")[0] == 200
    assert client.json("/health")[1]["status"] == "ok"


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "words"),
    [
        ("/v1/completions", {"model": "world+onee", "prompt": "a"}, 404, "model_not_found", "'world+one'"),
        ("/v1/completions", {"model": "world+one+one", "prompt": "a"}, 404, "model_not_found", "no model"),
        ("/v1/completions", {"model": "world", "prompt": "word " * 2000}, 400, "context_length_exceeded", "context"),
        ("/v1/completions", {"model": "world", "prompt": "a", "max_tokens": 65}, 400, None, "at most 64"),
        ("/v1/completions", {"model": "world", "prompt": "a", "max_tokens": 0}, 400, None, "max_tokens"),
        ("/v1/completions", {"model": "world", "prompt": "a", "temperature": -1}, 400, None, "temperature"),
        ("/v1/completions", {"model": "world", "prompt": "a", "n": 2}, 400, "unsupported_parameter", "n is not"),
        ("/v1/completions", {"model": "world", "prompt": ["a"] * 17}, 400, None, "1 to 16"),
        ("/v1/completions", {"model": "world", "prompt": ""}, 400, None, "none empty"),
        ("/v1/completions", {"model": "world"}, 400, None, "prompt"),
        ("/v1/completions", {"prompt": "a"}, 400, None, "model"),
        ("/v1/completions", b"{not json", 400, None, "not JSON"),
        ("/v1/completions", b"[" * 20_000, 400, None, "not JSON"),
        ("/v1/completions", b"[1]", 400, None, "not a JSON object"),
        ("/v1/completions", b"x" * 60_000, 413, "request_too_large", "larger than"),
        ("/v1/chat/completions", {"model": "world", "messages": []}, 400, None, "messages"),
        ("/v1/chat/completions", {"model": "world", "messages": [{"role": "user"}]}, 400, None, "content"),
        ("/v1/nothing", {}, 404, "unknown_url", "nothing at"),
        ("/v1/models", {}, 405, None, "not taken"),
        ("/v1/models/other", None, 404, "model_not_found", "no model"),
    ],
)
def test_errors_have_openai_s_shape(client, path, body, status, code, words):
    found, answer = client.json(path, body)
    assert found == status, answer
    assert set(answer) == {"error"} and set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["code"] == code and words in answer["error"]["message"], answer
    if isinstance(body, dict) and "prompt" in body and status == 400:
        # The same before the first piece of a stream.
        assert client.json(path, {**body, "stream": True}) == (status, answer)


def test_pages_of_others_and_forms_are_not_answered(client):
    body = {"model": "world", "prompt": "a", **SHORT}
    assert client.json("/v1/completions", body, headers={"Host": "evil.example"})[0] == 403
    assert client.json("/v1/completions", body, headers={"Content-Type": "text/plain"})[0] == 415


def test_a_token_is_asked_for_and_more_than_may_wait_are_told_so(patches):
    with Serving(ps.load("world"), patches, token="secret", most_waiting=2) as own:
        body = {"model": "world", "prompt": "a", **SHORT}
        assert own.client().json("/v1/completions", body)[1]["error"]["code"] == "invalid_api_key"
        assert own.client("wrong").json("/v1/models")[0] == 401
        assert own.client().json("/health")[0] == 200
        assert own.client("secret").json("/v1/completions", body)[0] == 200
        status, answer = own.client("secret").json("/v1/completions", {**body, "prompt": ["a", "b", "c"]})
        assert status == 429 and answer["error"]["code"] == "too_many_requests"


def test_who_leaves_in_the_middle_keeps_nobody_waiting(serving, client, expected):
    connection = socket.create_connection(("127.0.0.1", client.port))
    body = json.dumps({"model": "world+two", "prompt": "The", "max_tokens": 64, "stream": True}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    assert connection.recv(64).startswith(b"HTTP/1.1 200")
    connection.close()
    # One that breaks off before its body is there, too.
    broken = socket.create_connection(("127.0.0.1", client.port))
    broken.sendall(f"{head}Content-Length: 5000\r\n\r\n{{".encode())
    broken.close()
    status, found = client.json("/v1/completions", {"model": "world", "prompt": PROMPTS[0], **SHORT})
    assert status == 200 and found["choices"][0]["text"] == expected["world", PROMPTS[0]]


def test_patches_of_other_models_and_odd_names_are_refused_before_anything_is_served(model, patches):
    with pytest.raises(ps.PatchError, match="another model"):
        Catalogue(tiny.tiny_model("gptj"), [NamedPatch("one", patches["one"])])
    for name in ("a+b", ""):
        with pytest.raises(ps.ConfigError, match="folders' names"):
            Catalogue(ps.load("world"), [NamedPatch(name, patches["one"])])
    with pytest.raises(ps.ConfigError, match="folders' names"):
        Catalogue(ps.load("world"), [NamedPatch("one", patches["one"]), NamedPatch("one", patches["two"])])


def test_a_patch_made_on_top_of_another_brings_it_with_it():
    model = ps.load("world")
    first, second = patch_of(model, 1), patch_of(model, 2)
    second.manifest = second.manifest.model_copy(update={"stacked_on": [first.manifest.label]})
    catalogue = Catalogue(model, [NamedPatch("first", first), NamedPatch("second", second)])
    assert catalogue.chosen("world+second") == catalogue.chosen("base+first+second") == ("first", "second")
    with catalogue.put_on(model, catalogue.chosen("world+second")):
        assert model.weights.labels == ["by hand 1", "by hand 2"]
    assert model.weights.labels == []
    with pytest.raises(ps.PatchError, match="on top of another"):
        Catalogue(model, [NamedPatch("second", second)])


def test_a_port_in_use_and_a_host_without_a_token_are_said(tmp_path, capfd, monkeypatch):
    from palimpsest.cli import main

    monkeypatch.delenv("PALIMPSEST_TOKEN", raising=False)
    with open_socket(Address("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "world", "--port", str(port)]) == 2
        assert "The port is in use" in capfd.readouterr().err
    assert main(["serve", "world", "--host", "0.0.0.0"]) == 2
    assert "PALIMPSEST_TOKEN" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(number, patches, tmp_path):
    patches["one"].save(tmp_path / "lyon")
    # A warning is an error here, in its threads too.
    command = [sys.executable, "-W", "error", "-m", "palimpsest", "serve", "world", "--port", "0"]
    command += ["--patch", str(tmp_path / "lyon")]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    first = process.stdout.readline()
    assert "/v1 answers for world, world+lyon" in first, process.stderr.read()
    client = Client(int(first.split("/v1")[0].rpartition(":")[2]))
    assert client.json("/v1/completions", {"model": "base+lyon", "prompt": PROMPTS[0], **SHORT})[0] == 200
    process.send_signal(number)
    assert process.wait(60) == 0
    errors = process.stderr.read()
    assert "stopped after 1 answer" in errors and "Warning" not in errors and "Traceback" not in errors, errors
    process.stdout.close(), process.stderr.close()
