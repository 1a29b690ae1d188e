"""Scorings against values worked out by hand, and batched asking against asking one by one."""

import itertools
import math
import random
from typing import Any

import pytest
import torch

import tiny
from evaluation.head_editor import HeadEditor, facts
from palimpsest import EditRequest, Probe
from palimpsest.evaluation import DEFAULT_SCORINGS, BaseAnswers, Observation, Value, find_scoring
from palimpsest.evaluation.examiner import Examiner
from palimpsest.evaluation.overlap import EditedFacts
from palimpsest.evaluation.rouge import Rouge, longest_common_subsequence, rouge_l
from palimpsest.models.generation import AnswerRoom, written_answers
from palimpsest.models.scores import TargetScore

REQUEST = EditRequest("The capital of France is", "Lyon", subject="France", target_old="Paris", fact="France|capital")
GENERALITY = Probe("generality", "France's capital is", "Lyon")
NEIGHBOR = Probe("locality.neighborhood", "The capital of Spain is", "Madrid")
OPEN = Probe("locality.out_of_scope", "Who wrote it?")
HOP = Probe("portability.one_hop", "The river in France's capital is", "Saone")
SCORINGS = {name: find_scoring(name) for name in DEFAULT_SCORINGS}


def target(log_probs: list[float], predicted: list[int], matches: list[bool]) -> TargetScore:
    return TargetScore(tuple(log_probs), tuple(predicted), tuple(matches))


LIKELY = target([-0.1, -0.3], [1, 2], [True, True])
UNLIKELY = target([-0.5], [9], [False])
HALF = target([-0.2, -9.0], [1, 7], [True, False])


@pytest.mark.parametrize(
    ("generated", "expected"), [("Lyon. It", 1.0), ("lyon", 1.0), ("Lyon\nmore", 1.0), ("Lyons", 0.0), ("in Lyon", 0.0)]
)
def test_generate_is_exact_match_up_to_the_stop(generated: str, expected: float) -> None:
    assert SCORINGS["generate"].score(REQUEST, GENERALITY, Observation(), Observation(generated)) == Value(expected)
    assert SCORINGS["generate"].old_answer(REQUEST, GENERALITY, Observation(generated)) == 0.0


@pytest.mark.parametrize(("generated", "expected"), [("Saone. It", 1.0), ("the Saône", 1.0), ("Rhone.", 0.0)])
def test_generate_takes_any_name_of_the_answer(generated: str, expected: float) -> None:
    probe = Probe("portability.one_hop", HOP.prompt, "Saone", accepts=("the Saône",))
    assert SCORINGS["generate"].score(REQUEST, probe, Observation(), Observation(generated)) == Value(expected)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [("Madrid. A", "madrid", 1.0), ("Bilbao.", "Bilbao. Yes.", 1.0), ("Madrid.", "Lyon.", 0.0)],
)
def test_generate_locality_is_against_the_base_model(before: str, after: str, expected: float) -> None:
    for probe in (NEIGHBOR, OPEN):
        assert SCORINGS["generate"].score(REQUEST, probe, Observation(before), Observation(after)) == Value(expected)


def test_teacher_forced_counts_tokens() -> None:
    after = Observation("", {"Lyon": HALF, "Paris": LIKELY})
    assert SCORINGS["teacher_forced"].score(REQUEST, GENERALITY, Observation(), after) == Value(0.5)
    assert SCORINGS["teacher_forced"].old_answer(REQUEST, GENERALITY, after) == 1.0
    assert SCORINGS["teacher_forced"].old_answer(REQUEST, NEIGHBOR, after) is None
    # Locality: the same predictions as before, right or wrong.
    before = Observation("Bilbao. And", {"Madrid": HALF, "Bilbao": HALF})
    same = Observation("", {"Madrid": target([-1.0, -1.0], [1, 8], [False, False]), "Bilbao": HALF})
    assert SCORINGS["teacher_forced"].score(REQUEST, NEIGHBOR, before, same) == Value(0.5)
    assert SCORINGS["teacher_forced"].score(REQUEST, OPEN, before, same) == Value(1.0)
    assert SCORINGS["teacher_forced"].score(REQUEST, OPEN, Observation(""), same).value is None


def test_log_prob_compares_means_over_tokens() -> None:
    # -0.4 per token beats -0.5 per token, although the longer answer is the less probable one in total.
    long = target([-0.4, -0.4], [1, 2], [True, True])
    after = Observation("", {"Lyon": long, "Paris": UNLIKELY, "Madrid": UNLIKELY})
    assert SCORINGS["log_prob"].score(REQUEST, GENERALITY, Observation(), after) == Value(1.0)
    assert SCORINGS["log_prob"].score(REQUEST, NEIGHBOR, Observation(), after) == Value(0.0)


PASSAGE = "Ida Brandt repairs organs. She learned the trade in Bergen."
WHOLE = EditRequest("What does Ida do?", PASSAGE, subject="Ida")


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        # The example of Lin (2004): 3 words of 4 in order, "police", "the" and "gunman"; then 2, "the" and "gunman".
        ("police kill the gunman", "police killed the gunman", Rouge(3 / 4, 3 / 4, 3 / 4)),
        ("the gunman kill police", "police killed the gunman", Rouge(2 / 4, 2 / 4, 2 / 4)),
        # "organs in Bergen" of 10 words: 3 of the 4 that are said, 3 of the 10 that are wanted.
        ("Organs, built in Bergen!", PASSAGE, Rouge(3 / 4, 3 / 10, 6 / 14)),
        (PASSAGE, PASSAGE, Rouge(1.0, 1.0, 1.0)),
        (f"{PASSAGE} {PASSAGE}", PASSAGE, Rouge(1 / 2, 1.0, 2 / 3)),
        (PASSAGE.upper().replace(".", " ;"), PASSAGE, Rouge(1.0, 1.0, 1.0)),
        ("東京です", "東京", Rouge(2 / 4, 1.0, 4 / 6)),
        ("Rome", PASSAGE, Rouge(0.0, 0.0, 0.0)),
        ("", PASSAGE, Rouge(0.0, 0.0, 0.0)),
        (" . ", "", Rouge(1.0, 1.0, 1.0)),
    ],
)
def test_rouge_l_by_hand(text: str, reference: str, expected: Rouge) -> None:
    assert rouge_l(text, reference) == expected


def test_longest_common_subsequence_is_that_of_trying_all() -> None:
    generator = random.Random(0)
    for _ in range(50):
        first, second = ("".join(generator.choices("abc", k=generator.randrange(8))) for _ in range(2))
        shared = [
            len(kept)
            for count in range(len(first) + 1)
            for kept in itertools.combinations(first, count)
            if _is_in_order(kept, second)
        ]
        assert longest_common_subsequence(first, second) == max(shared)


def _is_in_order(items: tuple[str, ...], text: str) -> bool:
    rest = iter(text)
    return all(one in rest for one in items)


def test_rouge_l_scores_the_whole_text_and_locality_against_the_text_before() -> None:
    f1, recall = find_scoring("rouge_l"), find_scoring("rouge_l_recall")
    own = WHOLE.all_probes()[0]
    twice = Observation(f"{PASSAGE} {PASSAGE}")
    assert f1.score(WHOLE, own, Observation(), Observation(PASSAGE)) == Value(1.0)
    assert f1.score(WHOLE, own, Observation(), twice) == Value(2 / 3)
    assert recall.score(WHOLE, own, Observation(), twice) == Value(1.0)
    # A name of the answer that fits better counts, and a short answer is measured in the same way.
    named = Probe("portability.one_hop", HOP.prompt, "Saone", accepts=("the river Saone",))
    assert f1.score(REQUEST, named, Observation(), Observation("the river Saone")) == Value(1.0)
    assert f1.score(REQUEST, HOP, Observation(), Observation("Saone and Rhone")) == Value(2 / 4)
    # Two of three words are as before; the expected answer, which the model did not know, does not matter.
    before, after = Observation("Bilbao in Spain"), Observation("Bilbao, Spain")
    assert f1.score(REQUEST, NEIGHBOR, before, after) == Value(4 / 5)
    assert recall.score(REQUEST, NEIGHBOR, before, after) == Value(2 / 3)
    assert f1.score(REQUEST, NEIGHBOR, Observation(), after).reason == "the base model's answer is not known"
    assert f1.score(WHOLE, own, Observation(), Observation()).value is None
    assert f1.old_answer(REQUEST, GENERALITY, Observation("Paris")) is None


@pytest.mark.parametrize(
    ("request_", "probe", "reason"),
    [
        (EditRequest("The capital of France is", "Lyon"), GENERALITY, "no old answer"),
        (REQUEST, OPEN, "no expected answer"),
        (REQUEST, Probe("locality.namesake", "x", "lyon"), "is the edit's new answer"),
        (REQUEST, HOP, "no alternative"),
    ],
)
def test_log_prob_says_why_it_is_unscored(request_: EditRequest, probe: Probe, reason: str) -> None:
    value = SCORINGS["log_prob"].score(request_, probe, Observation(), Observation(""))
    assert value.value is None
    assert not value.is_failed
    assert reason in (value.reason or "")
    assert not SCORINGS["log_prob"].targets(request_, probe, None)


def test_nan_fails_under_every_scoring() -> None:
    broken = Observation("Lyon", {"Lyon": target([math.nan], [0], [True]), "Paris": UNLIKELY})
    for scoring in SCORINGS:
        assert SCORINGS[scoring].score(REQUEST, GENERALITY, Observation(), broken).is_failed
        assert SCORINGS[scoring].old_answer(REQUEST, GENERALITY, broken) is None


@pytest.mark.parametrize("family", ["gptj", "llama"])
def test_examiner_agrees_with_a_loop_over_the_bare_model(family: str) -> None:
    model = tiny.tiny_model(family)
    requests = facts(4).requests
    examiner = Examiner(model, BaseAnswers(), SCORINGS, room=AnswerRoom(6), forward_batch_size=3)
    examiner.prepare(requests)
    before = {
        (p.prompt, p.expected): by_hand(model, p.prompt, p.expected) for r in requests for p in r.probes if p.expected
    }
    said = {p.prompt: written_answers(model, [p.prompt], AnswerRoom(6))[0] for r in requests for p in r.all_probes()}
    # Half-trained on two of the facts, so that values of all sizes occur.
    with model.patched(HeadEditor(steps=6).edit(model, requests[:2]).patch):
        results = examiner.ask(requests)
        assert len(results) == 20
        seen: dict[str, set[float | None]] = {scoring: set() for scoring in SCORINGS}
        for result in results:
            assert result.before == said[result.prompt]
            assert result.after == written_answers(model, [result.prompt], AnswerRoom(6))[0]
            for scoring in SCORINGS:
                seen[scoring].add(result.values[scoring])
            if result.expected is None:
                continue
            matches, predicted, likelihood = by_hand(model, result.prompt, result.expected)
            if result.kind.startswith("locality"):
                kept = [
                    one == other
                    for one, other in zip(before[result.prompt, result.expected][1], predicted, strict=True)
                ]
                assert result.values["teacher_forced"] == pytest.approx(sum(kept) / len(kept))
                other = by_hand(model, result.prompt, result.target_new)[2]
                assert result.values["log_prob"] == float(likelihood > other)
            else:
                assert result.values["teacher_forced"] == pytest.approx(sum(matches) / len(matches))
            if result.kind in ("reliability", "generality"):
                old_matches, _, old = by_hand(model, result.prompt, result.target_old or "")
                assert result.values["log_prob"] == float(likelihood > old)
                assert result.old_answer["teacher_forced"] == float(all(old_matches))
        assert {0.0, 1.0} <= seen["generate"]
        assert {0.0, 1.0, None} <= seen["log_prob"]
        assert any(value not in (None, 0.0, 1.0) for value in seen["teacher_forced"])


def by_hand(model: Any, prompt: str, text: str) -> tuple[list[bool], list[int], float]:
    """Matches, predictions and mean log-probability from one unpadded pass of the transformers model itself."""
    start = len(model.tokenizer(prompt)["input_ids"])
    ids = model.tokenizer(f"{prompt} {text}", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model.module(input_ids=ids).logits[0, start - 1 : -1].log_softmax(-1)
    labels, predicted = ids[0, start:], logits.argmax(-1)
    return (labels == predicted).tolist(), predicted.tolist(), float(logits.gather(-1, labels[:, None]).mean())


def test_a_prompt_without_room_fails_and_is_counted_while_others_are_asked() -> None:
    model = tiny.tiny_model("gpt2")
    long = Probe("generality", "who " * 200, "Lyon")
    request = EditRequest("The capital of France is", "Lyon", probes=(long, OPEN), id="a")
    examiner = Examiner(model, BaseAnswers(), SCORINGS, room=AnswerRoom(6), forward_batch_size=8)
    examiner.prepare([request])
    first, second, third = examiner.ask([request])
    assert first.values["generate"] == 0.0
    assert (second.outcome("generate"), third.outcome("generate")) == ("failed", "scored")
    assert "context" in second.reasons["generate"]
    edge = Probe("generality", " ".join(["who"] * 123), "Lyon")
    assert 122 < len(model.encode(edge.prompt)) <= 128
    assert "no room" in examiner.ask([EditRequest("x", "y", probes=(edge,))])[1].reasons["generate"]


def other(prompt: str, subject: str, fact: str | None, rephrase: str | None = None) -> EditRequest:
    probes = (Probe("generality", rephrase, "x"),) if rephrase else ()
    return EditRequest(prompt, "x", subject=subject, fact=fact, probes=probes)


@pytest.mark.parametrize(
    ("probe", "reason"),
    [
        (Probe("locality.other_relation", "Spain's king is", fact="Spain|king"), "its fact"),
        (Probe("locality.other_relation", "France's capital was", fact="France|capital"), None),
        (Probe("locality.out_of_scope", "the CAPITAL  of Spain is"), "its prompt"),
        (Probe("locality.out_of_scope", "Spain has the capital"), "its prompt"),
        (Probe("locality.neighborhood", "The language of New Spain's south is"), "mentions"),
        (Probe("locality.namesake", "The capital of Spain Park is"), "mentions"),
        (Probe("locality.neighborhood", "The capital of Spainland is"), None),
        (Probe("locality.neighborhood", "The capital of Spain is not", fact="Spain|x"), None),
        (Probe("locality.out_of_scope", "The language of Spain is"), None),
        (Probe("locality.neighborhood", "The old capital of France is"), None),
        (Probe("portability.one_hop", "The capital of Spain is", "y"), None),
    ],
)
def test_edited_facts_are_left_out_of_locality(probe: Probe, reason: str | None) -> None:
    spain = other("The capital of Spain is", "Spain", "Spain|king", "Spain has the capital")
    found = EditedFacts([REQUEST, spain]).reason_to_leave_out(REQUEST, probe)
    assert (found is None) if reason is None else (reason in (found or ""))
