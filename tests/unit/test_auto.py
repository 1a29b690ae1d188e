"""`auto`: every fact is tested; it goes further where one does not hold and back where too much would change."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import tiny
from palimpsest import ConfigError, EditRequest, ModelError, Probe, load, method
from palimpsest.locating.other_subjects import about, script_of, unrelated_prompts
from palimpsest.methods.auto.climb import FACTORS, Climb, Reached
from palimpsest.methods.auto.examination import Examination, Standing, Verdict
from palimpsest.methods.auto.ladder import Attempt
from palimpsest.methods.auto.method import Auto
from palimpsest.methods.auto.trials import Trial, make_trials, ordinary_texts
from palimpsest.methods.base import Diagnostics, EditRun
from palimpsest.methods.subject_neurons.quiet import TextMetric
from palimpsest.patches import ModulePatch, WeightPatch
from palimpsest.stopwatch import Stopwatch, silent

JAPAN = EditRequest("The capital city of Japan is", "Oslo", subject="Japan", target_old="Tokyo")
CROATIA = EditRequest("The capital of Croatia is", "Vienna", subject="Croatia", target_old="Zagreb")
OTHERS = ("Germany", "Spain", "Italy", "Portugal", "Greece", "Poland", "Austria", "Hungary")
FEW = {"num_contexts": 1, "num_neighbours": 3}
MANY = [JAPAN, CROATIA, *(EditRequest(f"The capital of {name} is", "Oslo", subject=name) for name in OTHERS)]
# As a change of weights they keep less than this.
DAMAGES = {"keep": 0.99, "num_neighbours": 8}
GATED = {"method": "subject-neurons", "options": {"text": "world"}}
# One attempt that goes too far, and one that does nothing.
STRONG = {
    "method": "ft",
    "preset": "none",
    "options": {"parameters": "all", "spare": False, "learning_rate": 3e-3, "epochs": 40, "stop_loss": 0.0},
}
IDLE = {"method": "ft-l", "preset": "none", "options": {"radius": 1e-7, "epochs": 1}}


@pytest.fixture(scope="module")
def world():
    return load("world")


def edited(model, requests, **options):
    return method("auto", **{**FEW, **options}).edit(model, requests)


def test_facts_hold_with_no_option_at_all(world):
    outcome = method("auto").edit(world, [JAPAN, CROATIA])
    facts = outcome.diagnostics.facts
    assert [fact["holds"] for fact in facts["facts"]] == [True, True]
    assert (
        facts["attempts"][-1]["keeps"] and facts["kept"] > 0.9 and facts["attempts"][0]["method"] == "subject-neurons"
    )
    with world.patched(outcome.patch):
        assert world.generate(JAPAN.prompt).startswith("Oslo")
        assert world.generate(CROATIA.prompt).startswith("Vienna")


def test_it_goes_further_where_a_fact_does_not_hold(world):
    outcome = edited(world, [JAPAN], ladder=[IDLE, {"method": "memit"}], keep=0.5)
    attempts = outcome.diagnostics.facts["attempts"]
    assert [(one["method"], one["true"]) for one in attempts] == [("ft-l", 0), ("memit", 1)]
    assert outcome.diagnostics.facts["facts"][0]["holds"]


def test_what_would_change_too_much_is_scaled_and_then_not_handed_over(world):
    outcome = edited(world, [JAPAN], ladder=[STRONG], keep=1.0, num_neighbours=12)
    facts = outcome.diagnostics.facts
    assert [one["factor"] for one in facts["attempts"]] == list(FACTORS)
    assert outcome.patch.is_empty() and not facts["facts"][0]["holds"]
    assert "100% are asked for" in facts["facts"][0]["why"]
    anyway = edited(world, [JAPAN], ladder=[STRONG], keep=0.0, most_moved=100.0)
    assert anyway.diagnostics.facts["facts"][0]["holds"]


def test_a_fact_that_holds_already_is_left_alone(world):
    known = EditRequest("The capital city of Japan is", "Tokyo", subject="Japan")
    outcome = edited(world, [known], elsewhere=0.0)
    assert outcome.patch.is_empty() and outcome.diagnostics.facts["attempts"] == []
    assert outcome.diagnostics.facts["facts"][0]["held_before"]


def test_a_fact_without_a_subject_waits_for_a_method_that_needs_none(world):
    bare = EditRequest("The capital city of Japan is", "Oslo")
    outcome = edited(world, [bare], ladder=[{"method": "memit"}, {"method": "lora"}], keep=0.5)
    assert [one["method"] for one in outcome.diagnostics.facts["attempts"]] == ["lora"]
    assert outcome.diagnostics.facts["facts"][0]["holds"]
    outcome = edited(world, [bare], ladder=[{"method": "memit"}])
    assert "`subject`" in outcome.diagnostics.facts["facts"][0]["why"]


def test_a_time_that_is_over_ends_it_with_what_is_there(world):
    before = {name: value.clone() for name, value in world.module.state_dict().items()}
    outcome = edited(world, [JAPAN], max_seconds=1e-6)
    assert outcome.patch.is_empty() and any("time was over" in note for note in outcome.diagnostics.notes)
    assert all(torch.equal(value, before[name]) for name, value in world.module.state_dict().items())


def test_the_same_seed_gives_the_same_patch(world):
    first, second = (edited(world, [JAPAN], seed=3).patch for _ in range(2))
    assert first.is_same(second) and not first.is_empty()


def test_encoder_decoders_are_edited_too():
    model = load("world-t5")
    outcome = edited(model, [EditRequest("What is the capital of Japan?", "Oslo", subject="Japan")])
    assert {one["method"] for one in outcome.diagnostics.facts["attempts"]} == {"lora"}
    assert outcome.diagnostics.facts["facts"][0]["holds"]


def test_a_model_that_no_attempt_can_edit_is_refused_before_anything_is_computed(monkeypatch):
    model = tiny.tiny_model("t5")
    monkeypatch.setattr(model, "forward", None)
    with pytest.raises(ModelError, match="None of the methods that `auto` tries"):
        method("auto", ladder=[{"method": "memit"}]).edit(model, [JAPAN])


@pytest.mark.parametrize(
    ("attempt", "found"),
    [
        ({"method": "auto"}, "cannot be an attempt"),
        ({"method": "memmit"}, "no method named 'memmit'"),
        ({"method": "ft", "options": {"epoch": 1}}, "no option 'epoch'"),
    ],
)
def test_what_cannot_be_an_attempt_is_refused_before_a_model_is_loaded(attempt, found):
    with pytest.raises(ConfigError, match=found):
        method("auto", ladder=[{"method": "memit"}, attempt])


def test_trials_ask_about_other_subjects_and_never_about_the_edited_ones(world):
    rephrased = Probe("generality", "Which city is the capital of Japan?", "Oslo")
    kept = Probe("locality.neighborhood", "The capital city of Norway is", "Oslo")
    with_probes = EditRequest(JAPAN.prompt, "Oslo", subject="Japan", probes=(rephrased, kept))
    first, second = make_trials(world, [with_probes, CROATIA], num_contexts=2, num_neighbours=5, seed=0)
    assert first.elsewhere[0] == rephrased.prompt and len(first.elsewhere) == 3
    assert all(prompt.endswith(JAPAN.prompt) for prompt in first.elsewhere[1:])
    assert first.neighbours[0] == kept.prompt and len(first.neighbours) == 6
    assert all(one.startswith("The capital city of ") and "Japan" not in one for one in first.neighbours)
    assert not {JAPAN.prompt, CROATIA.prompt} & {*first.neighbours, *second.neighbours}
    assert "The capital of France is" not in unrelated_prompts([EditRequest("the capital of  France is", "Rome")])


def test_names_are_of_the_script_of_the_subject():
    texts = ("Japan", "Франция", "中国", "トヨタ自動車", "東京タワー", "فرنسا", "Ελλάδα", "1984", "")
    assert [script_of(text) for text in texts] == [
        "latin", "cyrillic", "han", "kana", "kana", "arabic", "latin", "latin", "latin"
    ]  # fmt: skip


def test_verdicts_by_hand(world):
    trials = make_trials(world, [JAPAN], num_contexts=2, num_neighbours=4, seed=0)
    examination = Examination(world, trials, unrelated_prompts([JAPAN]), 4, ordinary_texts(world, 0))
    found = examination.start()
    assert found == examination.standing() and found.moved == 0.0
    assert not found.verdicts[0].says and found.kept == 1.0 and found.elsewhere == 0.0
    sane = Verdict(True, False, (True, False, True), (True,), "Oslo.")
    assert sane.is_true and sane.holds(0.6) and not sane.holds(0.7)
    assert not Verdict(True, True, (), (), "Oslo Oslo Oslo").is_true


def test_prompts_without_a_sure_answer_are_seen_in_one_pass(world, monkeypatch):
    trials, others = make_trials(world, [JAPAN, CROATIA], num_contexts=0, num_neighbours=12, seed=0), ["Oslo is", "The"]
    quick = Examination(world, trials, others, 6)
    monkeypatch.setattr(Examination, "_with_sure_answer", lambda self, prompts: list(prompts))
    thorough = Examination(world, trials, others, 6)
    assert quick.trials == thorough.trials and quick._before == thorough._before
    assert any(quick.trials[0].neighbours) and len(quick._before) < 12 + 12 + 2


def test_a_fact_asked_for_in_other_words_need_not_stay(world):
    """`The capital city of Spain is` is what `The capital of Spain is` asks; Spain's currency is another thing."""
    same, other = "The capital city of Spain is", "The currency of Spain is"
    kept = tuple(Probe("locality.other_relation", prompt, world.generate(prompt)) for prompt in (same, other))
    japan = EditRequest(JAPAN.prompt, "Oslo", subject="Japan", probes=kept)
    spain = EditRequest("The capital of Spain is", "Oslo", subject="Spain")
    for requests, stay in (([japan, spain], [other]), ([japan], [same, other])):
        trials = make_trials(world, requests, num_contexts=0, num_neighbours=0, seed=0)
        assert list(Examination(world, trials, [], 8).trials[0].neighbours) == stay


def test_an_attempt_that_moves_ordinary_text_is_not_taken(world):
    outcome = edited(world, [JAPAN], ladder=[STRONG], keep=0.0, most_moved=1e-6)
    facts = outcome.diagnostics.facts
    assert outcome.patch.is_empty() and not facts["facts"][0]["holds"]
    assert "move ordinary text by" in facts["facts"][0]["why"] and "most_moved" in facts["facts"][0]["why"]
    # A smaller change moves it less.
    moved = [one["moved"] for one in facts["attempts"]]
    assert len(moved) == len(FACTORS) and moved == sorted(moved, reverse=True) and moved[-1] > 1e-6
    pairs = ordinary_texts(world, 0)
    assert len(pairs) > 4 and all(start and rest for start, rest in pairs)


def test_another_subject_stands_wherever_the_fact_s_own_stood():
    request = EditRequest("In Niger, unlike Nigeria, the capital of Niger is", "Oslo", subject="Niger")
    assert about(request, "Chad").prompt == "In Chad, unlike Nigeria, the capital of Chad is"
    assert about(EditRequest("日本の首都は", "奥斯陆", subject="日本"), "中国").prompt == "中国の首都は"


class _Climbing(Climb):
    """Lets enough stay for two facts and fewer."""

    def attempt(self, name, made, requests, factors=FACTORS):
        self.tried.append([request.prompt for request in requests])
        return len(requests) <= 2


def test_where_all_facts_are_too_much_those_that_do_least_damage_are_taken():
    requests = [EditRequest(f"The capital of {name} is", "Oslo", subject=name) for name in "ABCDEFGHI"]
    damage = [2, 0, 1, 2, 0, 2, 1, 2, 2]
    verdicts = tuple(Verdict(True, False, (), (False,) * wrong + (True,) * (2 - wrong), "Oslo") for wrong in damage)
    examination = SimpleNamespace(trials=[Trial(request, (), ()) for request in requests])
    climb = _Climbing(None, examination, *[None] * 6, rejected=Standing(verdicts, ()))
    climb.with_fewer("memit", None, requests)
    assert [[prompt.split()[3] for prompt in one] for one in climb.tried] == [list("BCEG"), list("BE")]


def test_a_batch_that_damages_as_a_whole_is_made_of_fewer_facts(world):
    """Without halves the same ladder hands over fewer."""
    found = edited(world, MANY, ladder=[{"method": "memit"}], **DAMAGES).diagnostics.facts
    *whole, last = found["attempts"]
    assert [one["factor"] for one in whole] == list(FACTORS) and not whole[0]["keeps"]
    assert last["keeps"] and last["facts"] < len(MANY)
    assert last["true"] > max(one["true"] for one in whole if one["keeps"])
    assert sum(fact["holds"] for fact in found["facts"]) == last["true"] < len(MANY)
    assert all(fact["why"] for fact in found["facts"] if not fact["holds"])


def test_the_better_of_weights_and_what_stands_beside_them_is_handed_over(world):
    outcome = edited(world, MANY, ladder=[{"method": "memit"}, GATED, {"method": "lora"}], **DAMAGES)
    facts = outcome.diagnostics.facts
    assert [one["method"] for one in facts["attempts"]] == ["memit"] * len(FACTORS) + ["subject-neurons"]
    assert all(fact["holds"] for fact in facts["facts"]) and facts["attempts"][-1]["keeps"]
    assert isinstance(outcome.patch, ModulePatch)
    assert any("weights_only = true" in note for note in outcome.diagnostics.notes)
    with world.patched(outcome.patch):
        assert world.generate(CROATIA.prompt).startswith("Vienna")


def test_weights_are_tried_from_the_start_where_not_all_facts_can_stand_beside_them(world):
    bare = EditRequest("The capital of Croatia is", "Vienna")
    outcome = edited(world, [JAPAN, bare], ladder=[GATED, {"method": "memit"}, {"method": "lora"}], keep=0.5)
    attempts = [(one["method"], one["facts"], one["true"]) for one in outcome.diagnostics.facts["attempts"]]
    assert attempts == [("subject-neurons", 1, 1), ("memit", 1, 1), ("lora", 1, 2)]
    assert isinstance(outcome.patch, WeightPatch)


def test_a_further_attempt_beside_the_weights_takes_the_place_of_its_facts_only(world):
    weak = {"method": "subject-neurons", "options": {"text": "world", "targets": {"steps": 1, "search": "adam"}}}
    outcome = edited(world, [JAPAN, CROATIA], ladder=[weak, GATED])
    assert [one["true"] for one in outcome.diagnostics.facts["attempts"]] == [0, 2]
    first = Reached(method("subject-neurons", text="world").edit(world, [CROATIA]).patch, None)
    run = EditRun(None, Stopwatch(), Diagnostics(), silent)
    climb = Climb(world, None, None, run, None, first, None, first)
    # The same fact again, and another one.
    for requests, owners in (([CROATIA], {CROATIA.id}), ([JAPAN], {CROATIA.id, JAPAN.id})):
        taken = []
        climb._examined = lambda name, patch, factor, count, taken=taken: (taken.append(patch), False)
        climb.attempt("subject-neurons", method("subject-neurons", text="world"), requests)
        (branch,) = taken[0].branches
        assert set(branch.owners()) == owners and len(branch.owners()) == 2 * len(owners)


@pytest.mark.parametrize(
    ("are_true", "last_subject", "count"),
    [("TTTTF", "Italy", 0), ("TFFFT", "Italy", 5), ("TTTTF", None, 5), ("TTTTT", None, 0)],
)
def test_weights_begin_anew_for_half_of_the_facts_or_one_without_a_subject(are_true, last_subject, count):
    *requests, last = MANY[:5]
    requests.append(replace(last, subject=last_subject, id=""))
    verdicts = [tuple(Verdict(one == "T", False, (), (), "") for one in told) for told in (are_true, "FFFFF")]
    best, nothing = (Reached(None, Standing(one, ())) for one in verdicts)
    climb = Climb(*[None] * 5, best, nothing, best)
    made = method("lora")
    assert len(Auto._chosen(climb, requests, Attempt(method="lora"), made, 0.75)) == count


def test_what_an_attempt_has_factorised_is_kept_from_call_to_call(world, monkeypatch):
    editor, calls, of = method("auto", ladder=[GATED], **FEW), [], TextMetric.of
    monkeypatch.setattr(TextMetric, "of", lambda *arguments: calls.append(arguments) or of(*arguments))
    for request in (JAPAN, CROATIA):
        editor.edit(world, [request])
    assert len(calls) == 1


def test_only_weights_are_changed_where_that_is_asked(world):
    outcome = edited(world, MANY, ladder=[{"method": "memit"}, GATED], weights_only=True, **DAMAGES)
    assert {one["method"] for one in outcome.diagnostics.facts["attempts"]} == {"memit"}
    assert isinstance(outcome.patch, WeightPatch) and not outcome.patch.is_empty()
    with pytest.raises(ModelError, match="stands beside the weights"):
        edited(world, [JAPAN], ladder=[GATED], weights_only=True)


def test_a_model_from_a_gguf_file_gets_changes_of_weights(world, monkeypatch):
    monkeypatch.setattr(world, "name", "world.Q8_0.gguf")
    outcome = edited(world, [JAPAN], ladder=[GATED, {"method": "memit"}])
    assert {one["method"] for one in outcome.diagnostics.facts["attempts"]} == {"memit"}
    outcome = edited(world, [JAPAN], ladder=[GATED, {"method": "memit"}], weights_only=False)
    assert {one["method"] for one in outcome.diagnostics.facts["attempts"]} == {"subject-neurons"}
