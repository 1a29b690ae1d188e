"""The commands on an encoder-decoder: the same words, the same shapes of output."""

import json

import pytest

import tiny
from palimpsest import load
from palimpsest.cli import comparing
from palimpsest.methods.catalogue import METHODS


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("encoder-decoder")
    tiny.tiny_folder(place / "model", "t5-gated")
    records = [request.to_dict() for request in tiny.requests()]
    (place / "facts.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return place


def test_an_edit_from_its_making_to_a_model_of_its_own(run, place, learn):
    facts, patch = place / "facts.jsonl", place / "patch"
    made = run("edit", place / "model", "-m", "ft", "--edits", facts, "--out", patch, "--json", *learn)
    assert made.code == 0 and all(one["is_right"] for one in made.json()["edits"])
    prompts = [fact[0] for fact in tiny.FACTS]
    answers = run("ask", place / "model", *prompts, "--patch", patch, "--json").json()["answers"]
    assert [one["after"] for one in answers] == [fact[3] for fact in tiny.FACTS]
    assert run("verify", place / "model", patch, "--json").json()["passed"] is True
    assert run("apply", place / "model", patch, "--out", place / "merged", "--json").code == 0
    assert load(str(place / "merged")).generate(prompts) == [fact[3] for fact in tiny.FACTS]


def test_a_low_rank_edit_becomes_an_adapter(run, place):
    arguments = ("-m", "lora", "--edits", place / "facts.jsonl", "-o", "epochs=2", "-o", 'sites=["encoder.attn.v"]')
    # Two passes need not make an edit hold.
    assert run("edit", place / "model", *arguments, "--out", place / "low-rank").code in (0, 1)
    out = place / "adapter"
    assert run("apply", place / "model", place / "low-rank", "--out", out, "--as", "peft").code == 0
    record = json.loads((out / "adapter_config.json").read_text())
    assert record["task_type"] == "SEQ_2_SEQ_LM" and all("encoder" in name for name in record["target_modules"])


def test_eval_doctor_and_list(run, place):
    arguments = ("--dataset", place / "facts.jsonl", "--method", "ft", "-o", "epochs=3", "--num-edits", 2, "--json")
    found = run("eval", place / "model", *arguments).json()
    assert found["status"] == "ok" and set(found["scores"]) == {"generate", "teacher_forced", "log_prob", "exact"}
    shown = run("doctor", place / "model")
    assert "2 encoder layers and 3 layers" in shown.out and "closes texts with an end token" in shown.out
    assert "t5-gated" in run("list", "models").out
    refused = run("edit", place / "model", "-m", "ft", "--edits", place / "facts.jsonl", "--out", place / "no",
                  "-o", "parameters=encoder.cross.q")  # fmt: skip
    assert refused.code != 0 and "did you mean" in refused.err and not (place / "no").exists()


def test_a_model_that_does_not_know_the_world_cannot_show_it(run, place, tmp_path):
    shown = run("demo", "--model", place / "model", "--out", tmp_path / "demo", "-n", 1)
    assert shown.code != 0 and "does not know enough facts" in shown.err and not (tmp_path / "demo").exists()


def test_the_bundled_encoder_decoder_shows_the_whole_story(run, tmp_path, monkeypatch):
    kept = {"ft", "f-learning-lora-ft"}
    monkeypatch.setattr(comparing, "NOT_FOR_ONE_FACT", tuple(name for name in METHODS if name not in kept))
    shown = run("demo", "--model", "world-t5", "--out", tmp_path / "demo", "-n", 1, "--json")
    assert shown.code == 0
    found = shown.json()
    assert found["model"] == "world-t5" and found["left_out"] == {}
    scores = {record["method"]: record["scores"]["generate"] for record in found["records"]}
    assert set(scores) == kept
    assert all(score["reliability"]["mean"] == score["locality.out_of_scope"]["mean"] == 1 for score in scores.values())
    assert all(name in (tmp_path / "demo" / "report.html").read_text() for name in kept)


def test_eval_takes_the_bundled_encoder_decoder_by_its_name(run):
    found = run("eval", "world-t5", "--dataset", "world-zsre", "--method", "locft", "--num-edits", 1, "--json").json()
    assert found["status"] == "ok" and found["scores"]["generate"]["reliability"]["mean"] == 1
    assert found["perplexity"]["after"] > 1
