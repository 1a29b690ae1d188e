"""A model that thinks before it answers: how it is asked, where its answer is looked for, and what an edit leaves."""

import json
from pathlib import Path

import pytest
import torch

import thinking_model
import tiny
from palimpsest import ConfigError, EditRequest, ModelError, Probe, assess, evaluate, load, load_patch, method
from palimpsest.cli import main
from palimpsest.evaluation import BaseAnswers
from palimpsest.evaluation.scoring import UNFINISHED
from palimpsest.models import THOUGHT_TOKENS, generate_as_configured, replies_to
from palimpsest.models.chat import Chat, chat_of, chosen_chat
from palimpsest.wording import is_unfinished, thought_of
from thinking_model import BUDGET, FACTS, thought_about

KINDS = tuple(tiny.THINKING_CHATS)
QUESTIONS = list(FACTS)
LEARN = {"parameters": "mlp.down", "learning_rate": 1e-2, "epochs": 30}


def request(index=0, **more):
    question = QUESTIONS[index]
    old, new = FACTS[question]
    return EditRequest(question, new, target_old=old, id=f"fact-{index}", **more)


# How the template asks


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_template_where_it_thinks(kind):
    tokenizer = tiny.tokenizer(kind)
    model = load(tiny.tiny_module("qwen3"), tokenizer, chat=True, thinking=True)
    for question in QUESTIONS:
        turns = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, enable_thinking=True, return_dict=False)
        assert list(model.asked(question).ids) == ids


@pytest.mark.parametrize(
    ("kind", "after"),
    [
        ("qwen-thinking", "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        ("opened", "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        ("harmony", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ],
)
def test_edits_and_probabilities_stand_where_the_answer_does(kind, after):
    tokenizer = tiny.tokenizer(kind)
    for thinking in (False, True):
        model = load(tiny.tiny_module("qwen3"), tokenizer, chat=True, thinking=thinking)
        assert model.chat.after == after and model.chat.separator == ""
        encoded = model.encode("Anna", "Lima")
        assert tokenizer.decode(encoded.prompt_ids) == model.chat.before + "Anna" + after
        assert tokenizer.decode(encoded.target_ids) == "Lima"
        assert model.end_id == tokenizer.convert_tokens_to_ids(tiny.THINKING_CHATS[kind][2][-1])
        assert (model.chat.thinking is not None) is thinking


def test_how_long_it_may_think_is_chosen_and_kept():
    tokenizer = tiny.tokenizer("qwen-thinking")
    at_once, thinks = chat_of(tokenizer, where="here"), chat_of(tokenizer, where="here", thought_tokens=7)
    assert at_once.thinking is None and set(at_once.to_dict()) == {"before", "after", "separator", "end"}
    assert Chat(**thinks.to_dict()) == thinks and thinks.at_once() == at_once
    chosen = [
        (False, None, None),
        (True, None, at_once),
        (True, False, at_once),
        (True, 0, at_once),
        (True, 7, thinks),
        (False, 7, thinks),
        (thinks.to_dict(), None, thinks),
        (thinks.to_dict(), True, thinks),
        (thinks.to_dict(), False, at_once),
        (at_once.to_dict(), None, at_once),
        (at_once.to_dict(), 7, thinks),
    ]
    for chat, thinking, expected in chosen:
        assert chosen_chat(chat, tokenizer, where="here", thinking=thinking) == expected
    assert chosen_chat(True, tokenizer, where="here", thinking=True).thought_tokens == THOUGHT_TOKENS
    with pytest.raises(ConfigError, match="fewer tokens than none"):
        chosen_chat(True, tokenizer, where="here", thinking=-1)
    for kind in tiny.CHATS:
        if kind != "qwen":
            with pytest.raises(ModelError, match="knows no thoughts"):
                chosen_chat(True, tiny.tokenizer(kind), where="here", thinking=True)


# What it answers


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_is_what_follows_the_thought(kind):
    model = thinking_model.thinking_model(kind)
    answers = [old for old, _ in FACTS.values()]
    found = model.generate(QUESTIONS)
    assert found == answers and [thought_of(text) for text in found] == list(map(thought_about, answers))
    assert [model.generate(question) for question in QUESTIONS] == found
    assert replies_to(model, [request(index) for index in range(3)]) == answers
    with model.answering_at_once():
        assert model.generate(QUESTIONS) == answers and thought_of(model.generate(QUESTIONS[0])) is None
    configured = generate_as_configured(model, QUESTIONS, max_new_tokens=4)
    assert [thought_of(text) for text in configured] == list(map(thought_about, answers))
    assert [text.startswith(answer) for text, answer in zip(configured, answers, strict=True)] == [True] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_thought_that_is_too_long_has_no_answer(kind):
    model = thinking_model.thinking_model(kind, thinking=6)
    found = model.generate(QUESTIONS)
    assert found == [""] * 3 and all(map(is_unfinished, found))
    record = evaluate(model, Untouched(), [request()], neutral_text=[])
    [probe] = record.probes
    assert (probe.values["generate"], probe.reasons["generate"]) == (None, UNFINISHED)
    assert (probe.before, probe.after, probe.old_answer["generate"]) == (None, None, None)
    assert probe.thought == thought_of(found[0]) and "reliability" not in record.scores["generate"]
    # Probabilities are read without a thought, so they are there.
    assert probe.values["log_prob"] == 0.0


# What is measured


class Untouched:
    """An editor that changes nothing."""

    name, State, carries_state = "untouched", None, False

    def resolve(self, model):
        return {}, None

    def check(self, requests):
        pass

    def training_cost(self, model):
        return {}

    def edit(self, model, requests, state=None, *, progress=None):
        from palimpsest.methods import Diagnostics, EditOutcome
        from palimpsest.patches.base import Manifest
        from palimpsest.patches.weights import WeightPatch

        return EditOutcome(WeightPatch({}, Manifest(label="nothing")), state, Diagnostics(seconds={"total": 0.0}))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_measures_answers_and_thoughts_apart(kind, tmp_path):
    model = thinking_model.thinking_model(kind)
    near = Probe("locality.neighborhood", QUESTIONS[1], "Rome")
    follows = Probe("portability.reasoning", QUESTIONS[2], "Lima", expected_old="Oslo")
    wanted = request(probes=(near, follows))
    true = EditRequest(QUESTIONS[2], "Oslo", target_old="Lima", id="true")
    base = BaseAnswers()
    record = evaluate(model, Untouched(), [wanted, true], neutral_text=[], base=base, out=tmp_path / "run")
    own, stays, reasoned, right = record.probes
    assert (own.after, own.thought, own.values["generate"]) == ("Paris", thought_about("Paris"), 0.0)
    assert (own.old_answer["generate"], own.old_thought) == (1.0, 1.0)
    assert (stays.values["generate"], stays.old_thought) == (1.0, None)
    assert (reasoned.values["generate"], reasoned.old_answer["generate"], reasoned.old_thought) == (0.0, 1.0, 1.0)
    assert (right.values["generate"], right.old_answer["generate"], right.old_thought) == (1.0, 0.0, 0.0)
    means = {name: one.mean for name, one in record.scores["generate"].items()}
    assert means["old_answer_rate"] == 0.5 and means["old_thought_rate"] == pytest.approx(2 / 3)
    assert means["old_deduced_rate"] == 1.0 and means["portability.reasoning"] == 0.0
    assert record.specification.chat == model.chat.to_dict()
    # What the base model said is kept with its thoughts.
    file = tmp_path / "base.json"
    file.write_text(json.dumps(base.to_dict()))
    again = BaseAnswers()
    again.belong_to(model)
    again.absorb(file)
    assert again.to_dict() == base.to_dict() and any(again.to_dict()["thoughts"].values())


def test_thinking_is_part_of_what_a_run_is():
    thinks, at_once = (thinking_model.thinking_model(thinking=tokens) for tokens in (BUDGET, 0))
    base = BaseAnswers()
    evaluate(thinks, Untouched(), [request()], neutral_text=[], base=base)
    with pytest.raises(ConfigError, match="another model"):
        evaluate(at_once, Untouched(), [request()], neutral_text=[], base=base)


def test_prompts_need_room_for_a_thought():
    model = thinking_model.thinking_model(thinking=180)
    record = evaluate(model, Untouched(), [request()], neutral_text=[])
    assert record.counts["failed"] > 0 and "no room" in record.probes[0].reasons["generate"]


@pytest.mark.parametrize("kind", KINDS)
def test_facts_are_assessed_behind_the_thought(kind):
    model = thinking_model.thinking_model(kind)
    facts = [request(index) for index in range(3)]
    found = assess(model, facts, answer="old")
    assert not found.wrong and not found.unfinished and all(fact.probability > 0.5 for fact in found.facts)
    # As the whole conversation has it, computed by hand.
    text = model.chat.asked().render(QUESTIONS[0]) + model.generate(QUESTIONS[0]).written
    prompt, whole = (model.tokenizer(one, add_special_tokens=False)["input_ids"] for one in (text, f"{text}Paris"))
    with torch.no_grad():
        logits = model.module(torch.tensor([whole])).logits[0].log_softmax(-1)
    by_hand = [logits[place - 1, whole[place]].item() for place in range(len(prompt), len(whole))]
    assert found.facts[0].probability == pytest.approx(torch.tensor(by_hand).mean().exp().item(), rel=1e-4)
    short = assess(thinking_model.thinking_model(kind, thinking=6), facts, answer="old")
    assert short.facts == () and short.unfinished == tuple(fact.id for fact in facts)


# What an edit does


@pytest.mark.parametrize("kind", KINDS)
def test_edits_are_the_same_bits_with_and_without_thinking_and_leave_no_trace(kind):
    thinks, at_once = (thinking_model.thinking_model(kind, thinking=tokens) for tokens in (BUDGET, 0))
    before = [(text, thought_of(text)) for text in thinks.generate(QUESTIONS)]
    weights = {name: one.clone() for name, one in thinks.module.state_dict().items()}
    found, other = (method("ft", preset="none", **LEARN).edit(one, [request()]).patch for one in (thinks, at_once))
    assert all(torch.equal(one, other.tensors()[name]) for name, one in found.tensors().items())
    assert all(torch.equal(one, weights[name]) for name, one in thinks.module.state_dict().items())
    with thinks.patched(found), thinks.answering_at_once():
        assert thinks.generate(QUESTIONS[0]) != "Paris"
    assert [(text, thought_of(text)) for text in thinks.generate(QUESTIONS)] == before
    assert (found.manifest.chat["thought_tokens"], "thought_tokens" in other.manifest.chat) == (BUDGET, False)


def test_the_command_line_thinks_where_it_is_told_to_and_as_the_patch_was_made(tmp_path, capsys):
    model = thinking_model.thinking_model()
    folder = tmp_path / "model"
    model.module.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    facts = tmp_path / "facts.jsonl"
    facts.write_text(json.dumps(request().to_dict()))
    options = [f"-o{name}={json.dumps(value)}" for name, value in LEARN.items()]
    made = ["edit", str(folder), "--method", "ft", "--edits", str(facts), *options, "--json"]
    thinks = ["--thinking-tokens", str(BUDGET)]
    code = main([*made, *thinks, "--out", str(tmp_path / "patch")])
    [edit] = json.loads(capsys.readouterr().out)["edits"]
    patch = load_patch(tmp_path / "patch")
    with model.patched(patch):
        said = model.generate(QUESTIONS[0])
    assert edit["after"] == said.strip() and edit["thought"] == thought_of(said)
    assert code == int(not edit["is_right"]) and patch.manifest.chat == model.chat.to_dict()

    def asked(*more):
        assert main(["ask", str(folder), QUESTIONS[0], "--json", *more]) == 0
        [found] = json.loads(capsys.readouterr().out)["answers"]
        return found

    on = ("--patch", str(tmp_path / "patch"))
    recorded = asked(*on)
    assert recorded["thoughts"]["before"] == {"text": thought_about("Paris"), "is_unfinished": False}
    assert recorded["before"] == "Paris" and recorded["after"] == said
    assert recorded == asked(*on, *thinks) == asked(*on, "--chat")
    assert "thoughts" not in asked(*on, "--no-thinking") and "thoughts" not in asked("--chat")
    assert asked(*thinks)["thoughts"]["before"]["text"] == thought_about("Paris")
    assert asked("--thinking-tokens", "6")["thoughts"]["before"]["is_unfinished"]
    assert main(["ask", str(folder), QUESTIONS[0], "--thinking-tokens", "6"]) == 0
    assert "did not end" in capsys.readouterr().out

    main(["verify", str(folder), str(tmp_path / "patch"), "--json"])
    [answer] = json.loads(capsys.readouterr().out)["answers"]
    assert answer["thought"] == thought_of(said)
    assert main(["verify", str(folder), str(tmp_path / "patch"), "--thinking-tokens", "6"]) == 1
    assert UNFINISHED in capsys.readouterr().out
    run = ["eval", str(folder), "-d", str(facts), "-m", "ft", *options, *thinks, "--out", str(tmp_path / "run")]
    assert main([*run, "--json"]) == 0
    assert "old_thought_rate" in json.loads(capsys.readouterr().out)["scores"]["generate"]
    assess_it = ["assess", str(folder), "--facts", str(facts), "--answer", "old", "--json"]
    assert main([*assess_it, *thinks]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["wrong"] == 0

    for more in (["--no-chat", "--thinking"], ["--no-thinking", "--thinking-tokens", "6"]):
        assert main(["ask", str(folder), QUESTIONS[0], *more]) == 2
        assert "contradict" in capsys.readouterr().err


def test_thinking_needs_a_template_with_thoughts(tmp_path: Path, capsys):
    folder = str(tiny.tiny_folder(tmp_path / "model", "llama", chat="llama-3"))
    assert main(["ask", folder, "Anna", "--thinking"]) == 2
    assert "knows no thoughts" in capsys.readouterr().err
