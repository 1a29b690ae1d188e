"""Chats: the ids are the template's own, the subject is found in them, and a patch remembers how it was made."""

import json

import pytest
import torch

import tiny
from palimpsest import EditRequest, ModelError, evaluate, load, load_patch, method
from palimpsest.cli import main
from palimpsest.errors import ConfigError, OutputError
from palimpsest.evaluation.answers import BaseAnswers
from palimpsest.locating.contexts import ContextOptions, context_templates
from palimpsest.locating.subject_vectors import subject_rows, subject_vectors
from palimpsest.locating.target_vector.options import TargetOptions
from palimpsest.locating.target_vector.rows import fact_rows
from palimpsest.models import tokens
from palimpsest.models.chat import Chat, chat_of
from palimpsest.models.hooks import Point, captured
from palimpsest.tracing.questions import question

KINDS = tuple(tiny.CHATS)
PROMPTS = ["The capital of France is", "Anna", "Who wrote it long ago, people of Oslo and Vienna, or"]
TARGETS = ["Lyon", "Keller was born in Lima", "the Danube"]
LEARN = {"parameters": "all", "spare": False, "learning_rate": 5e-3, "epochs": 60, "stop_loss": 0.02}


def chatting(kind, family="llama"):
    return load(tiny.tiny_module(family), tiny.tokenizer(kind), chat=True)


def templated(tokenizer, prompt, answer=None):
    turns = [{"role": "user", "content": prompt}] + ([{"role": "assistant", "content": answer}] if answer else [])
    return tokenizer.apply_chat_template(
        turns, add_generation_prompt=answer is None, enable_thinking=False, return_dict=False
    )


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_template(kind):
    model, tokenizer = chatting(kind), tiny.tokenizer(kind)
    for prompt, target in zip(PROMPTS, TARGETS, strict=True):
        encoded, whole = model.encode(prompt, target), templated(tokenizer, prompt, target)
        assert list(encoded.prompt_ids) == templated(tokenizer, prompt)
        assert list(encoded.ids) == whole[: len(encoded)]
        assert whole[len(encoded)] == model.end_id == tokenizer.convert_tokens_to_ids(tiny.CHATS[kind][2][-1])
        assert tokenizer.decode(encoded.target_ids) == (" " if kind == "brackets" else "") + target
    if tiny.CHATS[kind][1]:
        assert list(encoded.ids).count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("The capital of France is", "France"),
        ("Anna Keller was born in", "Anna Keller"),
        ("user", "user"),
        ("The assistant of Vienna is", "assistant"),
        ("日本の首都は", "日本"),
    ],
)
def test_the_subject_is_found_in_the_user_s_words(kind, prompt, subject):
    model, tokenizer = chatting(kind), tiny.tokenizer(kind)
    request = EditRequest(prompt, "x", subject=subject)
    first, last = (
        find(tokenizer, request, chat=model.chat) for find in (tokens.subject_first_token, tokens.subject_last_token)
    )
    ids = model.encode(prompt).ids
    assert subject in tokenizer.decode(ids[first : last + 1])
    assert subject not in tokenizer.decode(ids[first:last])
    words = len(tokenizer(model.chat.before, add_special_tokens=False)["input_ids"])
    assert (
        words - 1 <= first <= last < len(ids) - len(tokenizer(model.chat.after, add_special_tokens=False)["input_ids"])
    )


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_at_the_subject_are_read_inside_the_user_s_words(kind):
    model, tokenizer, point = chatting(kind), tiny.tokenizer(kind), Point("mlp.down", 1, "input")
    request = EditRequest("The capital of France is", "Lyon", subject="France")
    templates = ("{}", "It was written long ago. {}")
    found = subject_vectors(model, subject_rows(model, [request], templates), [point])[point][0]
    [rows] = fact_rows(model, [request], templates, TargetOptions())
    for index, template in enumerate(templates):
        ids = templated(tokenizer, template.replace("{}", request.prompt))
        texts = [tokenizer.decode(ids[: end + 1]) for end in range(len(ids))]
        last = next(end for end, text in enumerate(texts) if text.endswith("of France"))
        assert rows[index].column == last and list(rows[index].ids[: len(ids)]) == ids
        with torch.no_grad(), captured(model.sites, [point]) as alone:
            model.module(input_ids=torch.tensor([ids]))
        assert torch.allclose(found[index], alone[point][0, last], atol=1e-5)
    first, end = question(model, request, "Lyon").subject
    assert tokenizer.decode(model.encode(request.prompt).ids[first:end]).strip() == "France"


def test_contexts_are_plain_text_in_a_chat_too():
    plain, chat = tiny.tokenizer("llama-3"), chatting("llama-3")
    options = ContextOptions(starts=["Rome"], lengths=[6])
    expected = context_templates(load(chat.module, plain), options, seed=0)
    assert context_templates(chat, options, seed=0) == expected and len(expected) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_whole_conversation_and_padding_changes_nothing(kind):
    model, tokenizer = chatting(kind), tiny.tokenizer(kind)
    scores = model.score(PROMPTS, TARGETS)
    for prompt, target, score in zip(PROMPTS, TARGETS, scores, strict=True):
        ids = torch.tensor([templated(tokenizer, prompt, target)])
        start = len(templated(tokenizer, prompt))
        with torch.no_grad():
            logits = model.module(ids, attention_mask=torch.ones_like(ids)).logits[0].log_softmax(-1)
        by_hand = [logits[i - 1, ids[0, i]].item() for i in range(start, start + len(score.log_probs))]
        assert score.log_probs == pytest.approx(by_hand, abs=1e-4)
    for side in ("left", "right"):
        together = [score.log_prob for score in model.score(PROMPTS, TARGETS, side=side)]
        assert together == pytest.approx([score.log_prob for score in scores], abs=1e-4)
    assert model.generate(PROMPTS, max_new_tokens=5) == [model.generate(p, max_new_tokens=5) for p in PROMPTS]


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_ends_with_the_turn(kind):
    model = chatting(kind)
    request = tiny.requests(1)[0]
    encoded = model.encode(request.prompt, request.target_new)
    patch = method("ft", preset="none", append_eos=True, **LEARN).edit(model, [request]).patch
    with model.patched(patch):
        ids = torch.tensor([encoded.ids])
        with torch.no_grad():
            assert int(model.module(ids).logits[0, -1].argmax()) == model.end_id
        assert model.generate(request.prompt) == request.target_new


def test_a_patch_remembers_the_chat_and_is_verified_and_asked_in_it(tmp_path, capsys):
    model = str(tiny.tiny_folder(tmp_path / "model", "llama", chat="llama-3"))
    facts = tmp_path / "facts.jsonl"
    facts.write_text("\n".join(json.dumps(request.to_dict()) for request in tiny.requests(2)))
    options = [f"-o{name}={json.dumps(value)}" for name, value in LEARN.items()]
    made = ["edit", model, "--method", "ft", "--edits", str(facts), "-o", "append_eos=true", *options]
    assert main([*made, "--chat", "--out", str(tmp_path / "patch")]) == 0
    assert main([*made, "--out", str(tmp_path / "plain")]) == 0
    chat = load_patch(tmp_path / "patch").manifest.chat
    assert "assistant" in chat["after"] and load_patch(tmp_path / "plain").manifest.chat is None

    capsys.readouterr()
    for extra, code in (([], 0), (["--chat"], 0), (["--no-chat"], 1)):
        assert main(["verify", model, str(tmp_path / "patch"), *extra]) == code
    capsys.readouterr()
    found = []
    for extra in (["--patch", str(tmp_path / "patch")], ["--patch", str(tmp_path / "plain")], ["--chat"]):
        assert main(["ask", model, "The capital of France is", "--json", *extra]) == 0
        found.append(json.loads(capsys.readouterr().out)["answers"][0])
    assert found[0]["after"] == "Lyon" == found[1]["after"]
    assert found[0]["before"] == found[2]["before"] != found[1]["before"]

    both = ["--patch", str(tmp_path / "patch"), "--patch", str(tmp_path / "plain")]
    assert main(["ask", model, "Anna", *both]) == 2
    assert "--chat or --no-chat" in capsys.readouterr().err
    assert main(["ask", model, "Anna", *both, "--no-chat"]) == 0

    again = load(model, chat=chat)
    assert again.chat == Chat(**chat) == load(model, chat=True).chat
    run = ["eval", model, "-d", str(facts), "-m", "ft", "--out", str(tmp_path / "run"), "--chat", "--json"]
    assert main([*run, *options]) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["specification"]["chat"] == chat


def test_answers_and_runs_of_a_chat_are_not_those_of_plain_prompts(tmp_path):
    plain, chat = load(tiny.tiny_module("llama"), tiny.tokenizer("qwen")), chatting("qwen")
    quick = method("ft", preset="none", epochs=1)
    base = BaseAnswers()
    evaluate(plain, quick, tiny.requests(1), base=base, out=tmp_path / "run", neutral_text=[])
    with pytest.raises(ConfigError, match="another model"):
        evaluate(chat, quick, tiny.requests(1), base=base, neutral_text=[])
    with pytest.raises(OutputError, match="chat"):
        evaluate(chat, quick, tiny.requests(1), out=tmp_path / "run", resume=True, neutral_text=[])


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "no chat template"),
        ("{{ raise_exception('roles must be three') }}", "roles must be three"),
        ("{{ messages[0].content | upper }}:", "changes the text that it is given"),
        ("{{ messages[0].content }} {{ messages[0].content }}:", "changes the text that it is given"),
        ("{{ messages[0].content | length }} {{ messages[0].content }}:{{ messages[1].content }}", "changes|cannot"),
    ],
)
def test_templates_that_cannot_be_used(template, words, tmp_path, capsys):
    tokenizer = type(tiny.tokenizer())(tokenizer_object=tiny.tokenizer().backend_tokenizer, chat_template=template)
    with pytest.raises(ModelError, match=words):
        chat_of(tokenizer, where="here")
    if template is None:
        model = str(tiny.tiny_folder(tmp_path / "model"))
        assert main(["ask", model, "Anna", "--chat"]) == 2
        assert "no chat template" in capsys.readouterr().err
