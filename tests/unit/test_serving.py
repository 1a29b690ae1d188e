"""`palimpsest serve`: OpenAI's protocol, patches by request, nothing lost or mixed up, errors in OpenAI's shape."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import palimpsest as ps
import processors
import tiny
from palimpsest.patches.base import Manifest
from palimpsest.patches.weights import LowRank, WeightPatch
from palimpsest.serving import Address, Catalogue, Limits, NamedPatch, open_socket
from palimpsest.serving.choosing import written_token
from served import Client, Serving

PROMPTS = ["The capital of France is", "The capital of Japan is", "The capital of Italy is", "Paris is the capital of"]
SHORT = {"max_tokens": 4, "temperature": 0}
SAID = {"model": "world", "messages": [{"role": "user", "content": PROMPTS[0]}]}


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


@pytest.mark.parametrize("temperature", [0, 1.3])
@pytest.mark.parametrize("name", ["world", "world+one"])
def test_choices_are_what_each_is_alone_with_the_next_seed(client, name, temperature):
    body = {"model": name, "max_tokens": 8, "temperature": temperature, "top_p": 0.95, "logprobs": 2}

    def alone(prompt, seed):
        status, found = client.json("/v1/completions", {**body, "prompt": prompt, "seed": seed})
        assert status == 200
        return found["choices"][0] | {"index": None}, found["usage"]

    expected = [alone(prompt, 7 + number) for prompt in PROMPTS[:2] for number in range(3)]
    several = {**body, "prompt": PROMPTS[:2], "seed": 7, "n": 3, "best_of": 3}
    status, found = client.json("/v1/completions", several)
    assert status == 200 and [one["index"] for one in found["choices"]] == list(range(6))
    assert [one | {"index": None} for one in found["choices"]] == [choice for choice, _ in expected]
    assert len({choice["text"] for choice, _ in expected}) > (2 if temperature else 0)
    # A prompt is read once for all of its choices, as OpenAI counts.
    assert found["usage"]["prompt_tokens"] == sum(used["prompt_tokens"] for _, used in expected) // 3
    assert found["usage"]["completion_tokens"] == sum(used["completion_tokens"] for _, used in expected)

    pieces = client.events("/v1/completions", several)
    for index, whole in enumerate(found["choices"]):
        assert joined(pieces, index) == (whole["text"], whole["logprobs"], whole["finish_reason"])


def joined(pieces, index):
    """Text, probabilities and the end of a choice of `/v1/completions` that came in pieces."""
    own = [one["choices"][0] for one in pieces if one["choices"][0]["index"] == index]
    parts = [one["logprobs"] for one in own if one["logprobs"] is not None]
    likely = {name: [item for part in parts for item in part[name]] for name in parts[0]}
    return "".join(one["text"] for one in own), likely, own[-1]["finish_reason"]


@pytest.mark.parametrize("temperature", [0, 1.3])
def test_probabilities_are_those_that_the_model_computes_for_the_text(client, temperature):
    model = ps.load("world")
    options = {"max_tokens": 10, "temperature": temperature, "seed": 3}
    status, found = client.json("/v1/completions", {"model": "world", "prompt": PROMPTS[0], "logprobs": 3, **options})
    [choice] = found["choices"]
    likely, text = choice["logprobs"], choice["text"]
    assert status == 200 and "".join(likely["tokens"]) == text
    assert likely["text_offset"] == [len("".join(likely["tokens"][:place])) for place in range(len(likely["tokens"]))]
    prompt = list(model.encode(PROMPTS[0]).ids)
    ids = [*prompt, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]
    with torch.no_grad():
        logits = model.module(torch.tensor([ids])).logits[0].log_softmax(-1)
    for place in range(len(prompt), len(ids)):
        row, number = logits[place - 1], place - len(prompt)
        assert likely["token_logprobs"][number] == pytest.approx(row[ids[place]].item(), abs=1e-4)
        best, named = row.topk(3), likely["top_logprobs"][number]
        assert [named[one] for one in list(named)[:3]] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert len(named) == 3 + (likely["tokens"][number] not in list(named)[:3])
    if temperature == 0:
        assert likely["token_logprobs"] == [max(one.values()) for one in likely["top_logprobs"]]

    body = {**SAID, "messages": [{"role": "user", "content": PROMPTS[0]}], "logprobs": True, **options}
    for most in (0, 3):
        [said] = client.json("/v1/chat/completions", {**body, "top_logprobs": most})[1]["choices"]
        content = said["logprobs"]["content"]
        assert [one["token"] for one in content] == likely["tokens"]
        assert [one["logprob"] for one in content] == likely["token_logprobs"]
        assert b"".join(bytes(one["bytes"]) for one in content).decode() == said["message"]["content"] == text
        assert {len(one["top_logprobs"]) for one in content} == {most}
        pieces = client.events("/v1/chat/completions", {**body, "top_logprobs": most})
        parts = [one["choices"][0]["logprobs"] for one in pieces]
        assert [item for part in parts if part for item in part["content"]] == content
    plain = client.json("/v1/chat/completions", {**body, "logprobs": False})[1]["choices"][0]
    assert plain["logprobs"] is None and plain["message"]["content"] == text


def test_probabilities_end_where_the_text_is_stopped(client, expected):
    whole = expected["world", PROMPTS[0]]
    body = {"model": "world", "prompt": PROMPTS[0], **SHORT, "stop": [whole[3:5]], "logprobs": 0}
    [choice] = client.json("/v1/completions", body)[1]["choices"]
    likely = choice["logprobs"]
    assert choice["text"] == whole[:3] and choice["finish_reason"] == "stop"
    assert all(offset < 3 for offset in likely["text_offset"]) and "".join(likely["tokens"]).startswith(whole[:3])
    assert set(likely["top_logprobs"]) == {None}
    assert joined(client.events("/v1/completions", body), 0) == (choice["text"], likely, "stop")


def test_the_requests_of_the_docs_are_answered(patches):
    page = (processors.ROOT / "docs" / "serving.md").read_text()
    asked = re.findall(r"curl localhost:8000(\S+) .*?\\\n  -d '(.*?)'\n", page, re.DOTALL)
    assert len(asked) == 4
    with Serving(ps.load("world"), {"oslo": patches["one"], "rome": patches["two"]}) as own:
        for path, body in asked:
            status, found = own.client().json(path, body.encode())
            wanted = json.loads(body)
            if "chat_template_kwargs" in wanted:
                # The bundled model knows no thoughts.
                assert status == 400 and found["error"]["param"] == "chat_template_kwargs"
                continue
            assert status == 200 and len(found["choices"]) == wanted.get("n", 1), found
            assert all((one["logprobs"] is not None) is ("logprobs" in wanted) for one in found["choices"])


def test_samples_are_drawn_where_a_memory_answers(model):
    """A patch that sends prompts elsewhere writes with more passes than there are tokens."""
    request = ps.EditRequest("The capital of France is", "Lyon", subject="France")
    memory = ps.method("ike", corpus=tiny.corpus_file()).edit(model, [request]).patch
    with Serving(ps.load("world"), {"memory": memory}) as own:
        body = {"model": "world+memory", "prompt": PROMPTS[0], "max_tokens": 6, "temperature": 2, "logprobs": 0}
        found = [own.client().json("/v1/completions", {**body, "seed": seed})[1]["choices"][0] for seed in (1, 2, 3, 1)]
    assert found[0] == found[3] and len({one["text"] for one in found}) > 1
    for one in found:
        assert "".join(one["logprobs"]["tokens"]) == one["text"]


def test_tokens_that_are_parts_of_characters_have_their_bytes():
    tokenizer = tiny.tokenizer()
    ids = tokenizer("日本 é.", add_special_tokens=False)["input_ids"]
    logits = torch.linspace(0, 1, len(tokenizer))
    tokens = [written_token(tokenizer, ids[:place], one, logits, likeliest=1) for place, one in enumerate(ids)]
    assert b"".join(bytes(one.chosen.bytes) for one in tokens).decode() == "日本 é."
    assert any("\ufffd" in one.chosen.text for one in tokens)
    assert [one.likeliest[0].log_prob for one in tokens] == [logits.log_softmax(-1)[-1].item()] * len(ids)


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
        ("/v1/completions", {"model": "world", "prompt": "a", "n": 0}, 400, None, "n: "),
        ("/v1/completions", {"model": "world", "prompt": ["a", "b"], "n": 9}, 400, None, "at most 16 texts"),
        ("/v1/completions", {"model": "world", "prompt": "a", "n": 2, "best_of": 3}, 400, None, "best_of"),
        ("/v1/completions", {"model": "world", "prompt": "a", "logprobs": 6}, 400, None, "logprobs"),
        ("/v1/completions", {"model": "world", "prompt": "a", "logprobs": True}, 400, None, "logprobs"),
        (
            "/v1/completions",
            {"model": "world", "prompt": "a", "echo": True},
            400,
            "unsupported_parameter",
            "echo is not",
        ),
        (
            "/v1/chat/completions",
            {**SAID, "tools": [{"type": "function"}]},
            400,
            "unsupported_parameter",
            "tools is not",
        ),
        ("/v1/chat/completions", {**SAID, "top_logprobs": 2}, 400, None, "needs logprobs: true"),
        ("/v1/chat/completions", {**SAID, "logprobs": True, "top_logprobs": 21}, 400, None, "top_logprobs"),
        ("/v1/completions", {"model": "world", "prompt": "a", "n": "2"}, 400, None, "n: "),
        ("/v1/completions", {"model": "world", "prompt": "a", "max_tokens": True}, 400, None, "max_tokens: "),
        ("/v1/completions", {"model": "world", "prompt": [1, 2]}, 400, None, "prompt: a text, or a list of texts"),
        ("/v1/completions", {"model": "world", "prompt": "a", "stop": [None]}, 400, None, "stop: a text, or a list"),
        (
            "/v1/chat/completions",
            {"model": "world", "messages": [{"role": "user", "content": 5}]},
            400,
            None,
            "messages.0.content: a text",
        ),
        ("/v1/chat/completions", {**SAID, "stream_options": 5}, 400, None, "stream_options: "),
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
