import json

import pytest

import tiny
from palimpsest.tracing import CausalTrace

PROMPT, SUBJECT = "The capital city of Japan is", "Japan"


def test_one_prompt(run, tmp_path):
    out = tmp_path / "japan"
    result = run("trace", "world", "--prompt", PROMPT, "--subject", SUBJECT, "--samples", 3, "--out", out, "--json")
    assert result.code == 0
    found = result.json()
    assert CausalTrace.load(out / "trace.json").model_dump(mode="json") == found["trace"]
    assert found["trace"]["answer"].strip() == "Tokyo" and found["trace"]["clean"] > 0.9
    assert json.loads((out / "layers.json").read_text()) == found["recommended"]
    assert found["recommended"]["layer"] == found["recommended"]["several_layers"][-1] >= 1
    assert (out / "trace.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in out.iterdir()) == ["layers.json", "trace.json", "trace.png"]


def test_averages_over_a_file(run, tmp_path):
    facts, out = tmp_path / "facts.jsonl", tmp_path / "traces"
    records = [
        {"prompt": PROMPT, "subject": SUBJECT, "target_old": "Tokyo", "target_new": "Oslo"},
        {"prompt": "The currency of Poland is the", "subject": "Poland", "target_old": "euro", "target_new": "rand"},
        {"prompt": "The currency of Japan is the", "subject": SUBJECT, "target_old": "yen", "target_new": "rand"},
    ]
    facts.write_text("\n".join(map(json.dumps, records)))
    result = run("trace", "world", "--facts", facts, "--samples", 2, "--out", out)
    assert result.code == 0
    for words in ("last subject token", "2 prompts", "1 fact passed over: the model does not know it", "layer to edit"):
        assert words in result.out
    average = json.loads((out / "trace.json").read_text())
    assert average["counts"]["last subject token"] == 2
    assert len((out / "traces.jsonl").read_text().splitlines()) == 2
    assert (out / "trace.png").exists()


def test_the_facts_are_drawn_by_the_seed(run):
    def traced(seed):
        arguments = ("--facts", "world-counterfact", "--num", 2, "--samples", 1, "--seed", seed, "--json")
        return run("trace", "world", *arguments).json()["trace"]["prompts"]

    first = traced(0)
    assert first == traced(0) != traced(1)


def test_an_answer_the_model_does_not_give_is_noted(run):
    result = run("trace", "world", "--prompt", PROMPT, "--subject", SUBJECT, "--target", "Rome", "--samples", 1)
    assert result.code == 0
    assert "does not give this answer" in result.out and "0.14 of the depth" in result.out


def test_a_prompt_in_a_chat_is_traced_as_the_template_has_it(run, tmp_path):
    model = tiny.tiny_folder(tmp_path / "model", "llama", chat="qwen")
    arguments = ("--prompt", PROMPT, "--subject", SUBJECT, "--samples", 1, "--chat", "--dtype", "bfloat16", "--json")
    tokens = json.loads(run("trace", model, *arguments).out)["trace"]["tokens"]
    assert tokens.count("<|im_start|>") == 3 and "".join(tokens).endswith("assistant\n<think>\n\n</think>\n\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "nothing to trace"),
        (("--prompt", PROMPT), "--subject"),
        (("--prompt", PROMPT, "--facts", "world-counterfact"), "not clear"),
        (("--prompt", PROMPT, "--subject", "Berlin"), "does not occur"),
        (("--prompt", PROMPT, "--subject", SUBJECT, "--noise", "0"), "noise"),
        (("--facts", "world-counterfac"), "world-counterfact"),
    ],
)
def test_bad_input_costs_nothing(run, tmp_path, arguments, words):
    result = run("trace", tmp_path / "no-model", *arguments, "--out", tmp_path / "out")
    assert (result.code, result.out) == (2, "")
    assert words in result.err
    assert list(tmp_path.iterdir()) == []
