"""`palimpsest serve` with models that think first: thought and answer apart, whole and in pieces."""

import pytest

import palimpsest as ps
import thinking_model
import tiny
from palimpsest.models import Chat, Conversations
from palimpsest.models.growing import GrowingText
from palimpsest.serving import Limits
from palimpsest.wording import is_unfinished, opened_by, parted, thought_of
from served import Serving
from thinking_model import BUDGET, FACTS, thought_about

KINDS = tuple(tiny.THINKING_CHATS)
QUESTIONS = list(FACTS)
THINKS = {"chat_template_kwargs": {"enable_thinking": True}}


def said(*turns, **more):
    roles = ("user", "assistant")
    messages = [{"role": roles[place % 2], "content": text} for place, text in enumerate(turns)]
    return {"model": "base", "messages": messages, "max_tokens": 60, **more}


def lyon(kind):
    """A patch after which the first question is answered otherwise."""
    edit = ps.EditRequest(QUESTIONS[0], "Lyon", target_old="Paris")
    model = thinking_model.thinking_model(kind)
    return (
        ps.method("ft", preset="none", parameters="mlp.down", learning_rate=1e-2, epochs=30).edit(model, [edit]).patch
    )


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def client(kind):
    model = thinking_model.thinking_model(kind, thinking=0)
    model.chat = None
    with Serving(model, {"lyon": lyon(kind)}, limits=Limits(tokens=80)) as found:
        yield found.client()


def message(client, body):
    status, found = client.json("/v1/chat/completions", body)
    assert status == 200, found
    [choice] = found["choices"]
    assert choice["message"].get("reasoning") == choice["message"].get("reasoning_content")
    return choice["message"], choice["finish_reason"], found["usage"]


def joined(pieces, index=0):
    """Thought, answer and end of a choice that came in pieces."""
    own = [one["choices"][0] for one in pieces if one["choices"] and one["choices"][0]["index"] == index]
    assert own[0]["delta"]["role"] == "assistant" and all("role" not in one["delta"] for one in own[1:])
    thought, answer = ("".join(one["delta"].get(name, "") for one in own) for name in ("reasoning_content", "content"))
    return thought, answer, own[-1]["finish_reason"]


def test_thought_and_answer_come_apart(client):
    for question, (answer, _) in FACTS.items():
        found, reason, usage = message(client, said(question, **THINKS))
        assert (found["content"], found["reasoning_content"], reason) == (answer, thought_about(answer), "stop")
        at_once, _, short = message(client, said(question))
        assert at_once["content"] == answer and "reasoning_content" not in at_once
        thought = usage["completion_tokens_details"]["reasoning_tokens"]
        # The same answer in the same tokens, behind a thought.
        assert usage["completion_tokens"] - thought == short["completion_tokens"] > 0
        assert "completion_tokens_details" not in short
        for options in (THINKS, {"chat_template_kwargs": {"thinking": True}}):
            pieces = client.events("/v1/chat/completions", said(question, **options))
            assert joined(pieces) == (thought_about(answer), answer, "stop")
            deltas = [one["choices"][0]["delta"] for one in pieces]
            assert sum(bool(delta.get("reasoning_content")) for delta in deltas) > 2
            assert not any("reasoning_content" in delta and "content" in delta for delta in deltas)
    off = said(QUESTIONS[0], chat_template_kwargs={"enable_thinking": False})
    assert message(client, off)[0] == message(client, said(QUESTIONS[0]))[0]


def test_tokens_of_thought_and_answer_are_counted_together(client):
    _, _, usage = message(client, said(QUESTIONS[0], **THINKS))
    enough, thought = usage["completion_tokens"], usage["completion_tokens_details"]["reasoning_tokens"]
    for tokens in (1, 2, thought - 2, thought, thought + 1, enough, enough + 1):
        body = said(QUESTIONS[0], **THINKS, max_tokens=tokens)
        found, reason, used = message(client, body)
        assert used["completion_tokens"] == min(tokens, enough)
        assert reason == ("length" if tokens <= enough else "stop")
        assert thought_about("Paris").startswith(found["reasoning_content"])
        assert "Paris".startswith(found["content"] or "") and (tokens > 2 or found["content"] is None)
        assert found["content"] == "Paris" if tokens >= enough else found["content"] != "Paris"
        pieces = client.events("/v1/chat/completions", body)
        assert joined(pieces) == (found["reasoning_content"], found["content"] or "", reason)
    # Left out, it may think as long as a request may at all.
    found, _, _ = message(client, {**said(QUESTIONS[0], **THINKS), "max_tokens": None})
    assert found["content"] == "Paris"


def test_stops_and_probabilities_are_those_of_the_answer(client):
    options = {**THINKS, "logprobs": True, "top_logprobs": 2}
    body = said(QUESTIONS[0], **options)
    status, found = client.json("/v1/chat/completions", body)
    content = found["choices"][0]["logprobs"]["content"]
    assert status == 200 and "".join(one["token"] for one in content) == "Paris"
    pieces = client.events("/v1/chat/completions", body)
    parts = [one["choices"][0]["logprobs"] for one in pieces]
    assert [item for part in parts if part for item in part["content"]] == content
    # "was" stands in the thought, "r" in both.
    for stop, expected in (("was", "Paris"), ("r", "Pa")):
        found, reason, _ = message(client, said(QUESTIONS[0], **options, stop=[stop]))
        assert (found["content"], found["reasoning_content"]) == (expected, thought_about("Paris"))
        assert reason == "stop"
        streamed = joined(client.events("/v1/chat/completions", said(QUESTIONS[0], **options, stop=[stop])))
        assert streamed == (thought_about("Paris"), expected, "stop")


def test_several_choices_think_each(client):
    body = said(QUESTIONS[0], **THINKS, n=3, temperature=1.0, seed=5)
    status, found = client.json("/v1/chat/completions", body)
    alone = [message(client, {**body, "n": 1, "seed": 5 + number})[0] for number in range(3)]
    assert status == 200 and [one["message"] for one in found["choices"]] == alone
    pieces = client.events("/v1/chat/completions", body)
    for index, one in enumerate(found["choices"]):
        expected = one["message"]["reasoning_content"], one["message"]["content"] or "", one["finish_reason"]
        assert joined(pieces, index) == expected


def test_before_and_after_an_edit(client, kind):
    model, patch = thinking_model.thinking_model(kind), lyon(kind)
    for name, patches in (("base", []), ("base+lyon", [patch])):
        with model.patched(*patches):
            expected = model.generate(QUESTIONS[0], max_new_tokens=20, until=())
            with model.answering_at_once():
                at_once = model.generate(QUESTIONS[0], max_new_tokens=20, until=())
        body = {**said(QUESTIONS[0]), "model": name}
        # Thought and answer share their tokens here.
        found = message(client, {**body, **THINKS, "max_tokens": BUDGET})[0]
        assert found.get("reasoning_content") == thought_of(expected)
        assert expected.startswith(found["content"] or "") and (found["content"] is None) is is_unfinished(expected)
        assert message(client, {**body, "max_tokens": 20})[0]["content"] == at_once
        assert at_once == ("Paris" if not patches else at_once) and (at_once != "Paris") is bool(patches)


def test_a_longer_conversation_is_what_the_template_makes_of_it(client, kind):
    tokenizer = tiny.tokenizer(kind)
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes."}]
    turns.append({"role": "user", "content": QUESTIONS[1]})
    conversations = Conversations(tokenizer, where="here")
    for thinks in (True, False):
        prompt, chat = conversations.of(turns, thought_tokens=40 if thinks else 0)
        whole = tokenizer.apply_chat_template(turns, add_generation_prompt=True, enable_thinking=thinks, tokenize=False)
        shown = chat.asked().render(prompt)
        # Where it does not think, an answer follows at once: a thought that the template begins is closed.
        assert shown == whole if thinks else shown.startswith(whole.rstrip())
        assert prompt == QUESTIONS[1] and (chat.thinking is not None) is thinks
    model = thinking_model.thinking_model(kind, thinking=0)
    model.chat = chat
    expected = model.generate(QUESTIONS[1], max_new_tokens=8, until=())
    found, _, usage = message(client, said("Hello", "Yes.", QUESTIONS[1], max_tokens=8))
    assert found["content"] == expected and "reasoning_content" not in found
    assert usage["prompt_tokens"] == len(model.encode(QUESTIONS[1]).ids)
    _, model.chat = conversations.of(turns, thought_tokens=60)
    expected = model.generate(QUESTIONS[1], max_new_tokens=8, until=())
    found, _, _ = message(client, said("Hello", "Yes.", QUESTIONS[1], **THINKS))
    assert found.get("reasoning_content") == thought_of(expected)
    assert (found["content"] or "")[:3] == expected[:3]


def renderings(monkeypatch, client, tokenizer, *bodies):
    """How often the chat template is rendered for each of some requests."""
    counts, render = [], tokenizer.apply_chat_template

    def counted(*given, **options):
        counts[-1] += 1
        return render(*given, **options)

    with monkeypatch.context() as patching:
        patching.setattr(tokenizer, "apply_chat_template", counted)
        for body in bodies:
            counts.append(0)
            assert client.json("/v1/chat/completions", body)[0] == 200
    return counts


def test_each_request_renders_the_template_once(client, kind, monkeypatch):
    """The template itself is read with the first request of each sort; one turn alone needs no further rendering."""
    tokenizer = tiny.tokenizer(kind)
    requests = [
        said(*turns, **options, max_tokens=4)
        for options in ({}, THINKS)
        for turns in ((QUESTIONS[0],), ("Hello", "Yes.", QUESTIONS[1]))
    ]
    renderings(monkeypatch, client, tokenizer, *requests)
    assert renderings(monkeypatch, client, tokenizer, *requests, *reversed(requests)) == [0, 1, 0, 1, 1, 0, 1, 0]


@pytest.mark.parametrize("chat", [*tiny.CHATS, *tiny.THINKING_CHATS])
def test_a_conversation_without_thoughts_is_the_same_where_it_is_derived_from_one_with_them(chat, monkeypatch):
    tokenizer = tiny.tokenizer(chat)
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes."}]
    turns.append({"role": "user", "content": QUESTIONS[1]})
    conversations = Conversations(tokenizer, where="here")
    assert conversations.knows_thoughts or chat not in tiny.THINKING_CHATS
    prompt, plain = conversations.of(turns)
    if not conversations.knows_thoughts:
        whole = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        assert plain.render(prompt) == whole
        return
    assert conversations.of(turns, thought_tokens=7)[1].at_once() == plain
    # A template that says something else in front where it thinks is rendered for both.
    monkeypatch.setattr(
        tokenizer, "chat_template", "{% if enable_thinking %}Think first.{% endif %}" + tokenizer.chat_template
    )
    conversations = Conversations(tokenizer, where="here")
    prompt, thinking = conversations.of(turns, thought_tokens=7)
    assert thinking.at_once() == plain and thinking.asked().render(prompt).startswith("Think first.")


@pytest.mark.parametrize("chat", ["llama-3", "qwen", "brackets"])
def test_a_conversation_ends_where_the_assistant_s_turn_does(chat):
    """The turn's end need not be the sequence's."""
    tokenizer = tiny.tokenizer(chat)
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes."}]
    prompt, found = Conversations(tokenizer, where="here").of([*turns, turns[0]])
    assert isinstance(found, Chat) and prompt == "Hello" and found.thinking is None
    assert found.end_id(tokenizer) == tokenizer.convert_tokens_to_ids(tiny.CHATS[chat][2][-1])
    ids = tokenizer.apply_chat_template(
        [*turns, turns[0]], add_generation_prompt=True, enable_thinking=False, return_dict=False
    )
    assert tokenizer(found.render(prompt), add_special_tokens=False)["input_ids"] == ids


def test_models_that_know_no_thoughts_say_so():
    model = ps.load(tiny.tiny_module("llama"), tiny.tokenizer("llama-3"))
    with Serving(model, {}) as own:
        for turns in (("Hello",), ("Hello", "Yes.", "Hello")):
            status, answer = own.client().json("/v1/chat/completions", said(*turns, **THINKS))
            assert status == 400 and answer["error"]["param"] == "chat_template_kwargs"
            assert "knows no thoughts" in answer["error"]["message"]
            assert own.client().json("/v1/chat/completions", said(*turns, max_tokens=2))[0] == 200
        odd = {"chat_template_kwargs": {"reasoning": True}}
        status, answer = own.client().json("/v1/chat/completions", said("Hello", **odd))
        assert status == 400 and "chat_template_kwargs.reasoning" in answer["error"]["message"]


FINAL = "<|channel|>final<|message|>"


@pytest.mark.parametrize(
    "text",
    [
        "<think>\nIt was Paris, <b>or so</b>.\n</think>\n\nParis",
        "\n<think>\n\n</think>\n\nParis",
        "[THINK]a [/THIN [/THINK]Paris",
        "<think>日本 é</think>日本",
        "Paris is no thought.",
        "<",
        "<thin",
        f"<|channel|>analysis<|message|>One.<|end|><|start|>assistant<|channel|>commentary<|message|>Two <|"
        f"<|end|><|start|>assistant{FINAL}Paris",
    ],
)
def test_what_is_told_of_a_thought_only_grows(text):
    """Told token by token, here byte by byte: never a part of a mark, and at its end the thought."""
    tokenizer, told, ended = tiny.tokenizer(), [], []
    ids = [one for byte in text.encode() for one in tokenizer.convert_tokens_to_ids([letters()[byte]])]
    growing = GrowingText(tokenizer, ended.append, answer_tokens=500, thought_tokens=500, thinks=told.append, ends={0})
    for one in ids:
        assert growing.add(one)
    growing.add(0)
    expected = parted(text) if opened_by(text) else text
    assert str(growing.text) == str(expected)
    certain = [one for one in told if one is not None]
    assert all(later.startswith(one) for one, later in zip(certain, certain[1:], strict=False))
    if thought_of(expected):
        assert certain[-1] == thought_of(expected) and len(set(certain)) > 2
    else:
        assert set(certain) <= {""}


def letters():
    from palimpsest.serving.choosing import _byte_letters

    return {byte: letter for letter, byte in _byte_letters().items()}
