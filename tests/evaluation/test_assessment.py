"""Scores of facts by hand, what they are held against, and input that cannot be assessed."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest

import tiny
from palimpsest import ConfigError, DataError, EditRequest, assess
from palimpsest.cli.app import main


class Oracle:
    """A model that gives every answer a probability from a table, and others a thousandth."""

    name, chat = "oracle", None

    def __init__(self, table):
        self.table, self.asked = table, []

    def score(self, prompts, targets):
        self.asked += zip(prompts, targets, strict=True)
        found = [self.table.get((prompt, target), 0.001) for prompt, target in zip(prompts, targets, strict=True)]
        return [SimpleNamespace(mean_log_prob=math.log(one) if one else -math.inf) for one in found]


def fact(subject, answer, *, of="capital", old=None, text="The {of} of {subject} is"):
    return EditRequest(
        text.format(of=of, subject=subject), answer, subject=subject, target_old=old, id=f"{of}-{subject}",
        fact=f"{of}|{subject}",
    )  # fmt: skip


FRANCE, ITALY, RIVER = fact("France", "Paris"), fact("Italy", "Rome"), fact("France", "Seine", of="river")
IN_FRANCE = "The capital of France is"


def test_scores_by_hand():
    """0.6 against the mean of 0.2 and 0.1, then both smoothed by 0.05; 0.1 against 0.4."""
    oracle = Oracle({(IN_FRANCE, "Paris"): 0.6, (IN_FRANCE, "Lyon"): 0.2, (IN_FRANCE, "Nice"): 0.1,
                     (ITALY.prompt, "Rome"): 0.1, (ITALY.prompt, "Milan"): 0.4})  # fmt: skip
    own = {"capital-France": ["Lyon", "Nice"], ITALY.prompt: ["Milan"]}
    found = assess(oracle, [FRANCE, ITALY], distractors=own)
    assert [one.score for one in found.facts] == pytest.approx([0.6 / 0.15, 0.1 / 0.4])
    assert [one.id for one in found.wrong] == ["capital-Italy"] and found.facts[0].is_held
    smooth = assess(oracle, [FRANCE, ITALY], distractors=own, smoothing=0.05)
    assert [one.score for one in smooth.facts] == pytest.approx([0.65 / 0.2, 0.15 / 0.45])
    strict = assess(oracle, [FRANCE, ITALY], distractors=own, threshold=5.0)
    assert [one.id for one in strict.wrong] == ["capital-Italy", "capital-France"]
    assert json.loads(json.dumps(found.to_json()))["counts"] == {"facts": 2, "wrong": 1, "left_out": 0}


def test_a_model_that_knows_nothing_scores_one_and_scale_does_not_matter():
    facts = [FRANCE, ITALY, fact("Spain", "Madrid")]
    assert {one.score for one in assess(Oracle({}), facts).facts} == {1.0}
    table = {(IN_FRANCE, "Paris"): 0.02, (IN_FRANCE, "Rome"): 0.05, (IN_FRANCE, "Madrid"): 0.03}
    small = Oracle({pair: value / 10 for pair, value in table.items()})
    assert assess(Oracle(table), facts).facts[0].score == pytest.approx(assess(small, facts).facts[0].score)
    # A wrong answer that underflows leaves a finite score.
    never = Oracle({(IN_FRANCE, "Lyon"): 0.0})
    assert math.isfinite(assess(never, [FRANCE], distractors={"capital-France": ["Lyon"]}).facts[0].score)


def test_wrong_answers_are_those_of_the_relation():
    """Never what is right for the same prompt; the record's other answer first."""
    twice = EditRequest(IN_FRANCE, "Lutetia", subject="France", fact="capital|France", id="other name")
    found = assess(Oracle({}), [fact("France", "Paris", old="Vichy"), twice, ITALY, RIVER], num_contrasts=9)
    contrasts = {one.id: [contrast.answer for contrast in one.contrasts] for one in found.facts}
    assert contrasts["capital-France"] == ["Vichy", "Rome"] and contrasts["other name"] == ["Rome"]
    assert set(contrasts["capital-Italy"]) == {"Paris", "Lutetia"} and found.left_out == ("river-France",)
    by_old = assess(Oracle({}), [fact("France", "Lyon", old="Paris")], answer="old").facts[0]
    assert (by_old.answer, [one.answer for one in by_old.contrasts]) == ("Paris", ["Lyon"])
    many = [fact(f"Land {index}", f"City {index}") for index in range(30)]
    drawn = [assess(Oracle({}), many, num_contrasts=4, seed=seed).facts for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and all(len(one.contrasts) == 4 for one in drawn[0])


def test_other_relations_keep_subject_and_answer():
    oracle = Oracle({(IN_FRANCE, "Paris"): 0.3, ("The river of France is", "Paris"): 0.1})
    found = assess(oracle, [FRANCE, ITALY, RIVER], against="relations")
    [contrast] = found.facts[0].contrasts
    assert (contrast.prompt, contrast.answer) == ("The river of France is", "Paris")
    assert found.facts[0].score == pytest.approx(3.0)
    # Where the answer is right in both relations, the other one is no contrast.
    both = assess(oracle, [FRANCE, fact("France", "Paris", of="port"), RIVER], against="relations")
    assert [one.prompt for one in both.facts[0].contrasts] == ["The river of France is"]


def test_what_cannot_be_assessed():
    with pytest.raises(DataError, match="no facts"):
        assess(Oracle({}), [])
    for against in ("answers", "relations"):
        with pytest.raises(DataError, match="no alternatives"):
            assess(Oracle({}), [FRANCE, EditRequest("Two and two is", "four")], against=against)
    with pytest.raises(DataError, match="no old answer"):
        assess(Oracle({}), [FRANCE], answer="old")
    with pytest.raises(ConfigError, match="belongs to no record"):
        assess(Oracle({}), [FRANCE], distractors={"capital-Frankreich": ["Lyon"]})
    with pytest.raises(ConfigError, match="out of range"):
        assess(Oracle({}), [FRANCE, ITALY], smoothing=-1)


def test_the_command(tmp_path, capsys):
    """Scores as the model itself gives them; the facts held wrongly as edits; errors cost nothing."""
    folder = tiny.tiny_folder(tmp_path / "model")
    facts = tmp_path / "facts.jsonl"
    records = [{"id": r.id, "prompt": r.prompt, "subject": r.subject, "target_new": r.target_new,
                "target_old": r.target_old} for r in tiny.requests()]  # fmt: skip
    facts.write_text("\n".join(map(json.dumps, records)))
    command = ["assess", str(folder), "--facts", str(facts)]
    out, wrong = tmp_path / "scores.json", tmp_path / "wrong.jsonl"
    assert main([*command, "--out", str(out), "--wrong", str(wrong), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads(out.read_text())
    model = tiny.tiny_model()
    for one, request in zip(told["facts"], tiny.requests(), strict=True):
        right, other = model.score([request.prompt] * 2, [request.target_new, one["contrasts"][0]["answer"]])
        assert one["probability"] == pytest.approx(math.exp(right.mean_log_prob), rel=1e-3)
        assert one["contrasts"][0]["probability"] == pytest.approx(math.exp(other.mean_log_prob), rel=1e-3)
    edits = [json.loads(line) for line in wrong.read_text().splitlines()]
    assert {one["id"] for one in edits} == {one["id"] for one in told["facts"] if not one["is_held"]}
    assert main(command) == 0 and "facts are held wrongly" in capsys.readouterr().out
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "bad.json").write_text('{"fact-0": "Lyon"}')
    (tmp_path / "one.jsonl").write_text('{"prompt": "Two and two is", "target_new": "four"}')
    for more, words in (
        (["--facts", str(tmp_path / "empty.jsonl")], "empty"),
        (["--facts", str(tmp_path / "one.jsonl")], "no alternatives"),
        (["--distractors", str(tmp_path / "bad.json")], "distractors cannot be read"),
        (["--answer", "newest"], "newest"),
        (["--out", str(out)], "scores.json"),
    ):
        assert main([*command, *more]) == 2
        assert words in " ".join(capsys.readouterr().err.split())
