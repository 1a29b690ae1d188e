"""A model that never ends a text after an answer: no edit is at fault for it, and an edit that makes it so is."""

from __future__ import annotations

import pytest

import tiny
from palimpsest import EditRequest, evaluate, load, method
from palimpsest.evaluation import verified
from palimpsest.models import AnswerRoom, own_repetitions, replies_to
from palimpsest.wording import before_repetition

PROMPT = "The capital of France is"
REQUEST = EditRequest(prompt=PROMPT, target_new="Lyon", target_old="Paris", subject="France")
LONG = "Lyon was written long ago by people who lived in Rome, Oslo, Lima and Vienna"
FT = {"preset": "none", "parameters": "all", "spare": False, "rank": 0, "learning_rate": 2e-3}


def trained(family: str, *texts: tuple[str, str]):
    """A tiny model that writes the second of each pair after the first."""
    model = tiny.tiny_model(family)
    requests = [EditRequest(prompt=prompt, target_new=answer) for prompt, answer in texts]
    outcome = method("ft", epochs=150, stop_loss=0.02, **FT).edit(model, requests)
    outcome.patch.apply(model)
    return load(model.module, model.tokenizer)


def edited(model, answer: str = "Lyon"):
    """A patch that makes the model write the answer at the prompt."""
    request = EditRequest(prompt=PROMPT, target_new=answer)
    return method("ft", epochs=60, stop_loss=0.05, **FT).edit(model, [request]).patch


def test_what_stands_before_a_repetition() -> None:
    assert before_repetition("Rome, Italy<a_b><a_b><a_b><a_b>") == "Rome, Italy"
    assert before_repetition("Osaka Osaka Osaka Osaka") == before_repetition("Rome is in Italy.") == ""


@pytest.mark.parametrize("family", ["gpt2", "t5", "bart"])
def test_the_base_model_is_asked_how_the_same_beginning_goes_on(family) -> None:
    said = "Lyon so so so so so so so so so so"
    for answer, expected in ((said, {PROMPT}), (LONG, set())):
        model = trained(family, (PROMPT, answer))
        assert model.generate(PROMPT, max_new_tokens=60, until=()).strip().startswith(answer)
        assert own_repetitions(model, {PROMPT: said}, AnswerRoom(12)) == expected
        assert own_repetitions(model, {PROMPT: "Lyon Lyon Lyon Lyon Lyon", "Rome is": "fine"}, AnswerRoom(12)) == set()


def test_a_repetition_of_the_base_models_own_is_not_the_edits_fault() -> None:
    model = trained("gpt2", (PROMPT, "Paris."), (f"{PROMPT} Lyon", "so so so so so so so so so so so so so so"))
    patch = edited(model)
    before = replies_to(model, [REQUEST])
    with model.patched(patch):
        after = replies_to(model, [REQUEST])
    assert before[0].strip().startswith("Paris") and after[0].strip().startswith("Lyon so so so so")
    (found,) = verified(model, [REQUEST], before, after)
    assert found.verdict == "holds" and found.repeats_anyway and found.after == "Lyon"
    record = evaluate(model, method("ft", epochs=60, stop_loss=0.05, **FT), [REQUEST])
    assert record.probes[0].degenerate is None and record.probes[0].values["generate"] == 1.0


def test_a_repetition_that_the_edit_brings_is_its_fault() -> None:
    model = trained("gpt2", (PROMPT, "Paris."), (f"{PROMPT} Lyon", "."))
    before = replies_to(model, [REQUEST])
    for answer in ("Lyon so so so so so so so so so so", "Lyon Lyon Lyon Lyon Lyon Lyon Lyon"):
        with model.patched(edited(model, answer)):
            after = replies_to(model, [REQUEST])
            assert own_repetitions(model, {PROMPT: after[0]}, AnswerRoom(20)) == set(), after
        (found,) = verified(model, [REQUEST], before, after)
        assert found.verdict == "babbles" and not found.repeats_anyway
