"""Prompts that fit the model's context by themselves and not behind a text that a method puts before them."""

import pytest
import torch

import tiny
from palimpsest import DataError, EditRequest, method
from palimpsest.locating import about, encode_in_context, well_known_subjects
from palimpsest.locating.answer_chunks import answer_chunks
from palimpsest.locating.first_token import apart_from_sink
from palimpsest.locating.subject_vectors import subject_rows
from palimpsest.locating.target_vector import TargetOptions, find_target_vectors
from palimpsest.methods.auto.trials import make_trials
from palimpsest.methods.subject_neurons.quiet import as_words, readings_beside

CONTEXT = "It was long ago. {}"
CONTEXTS = ("{}", CONTEXT)
OPTIONS = {"contexts": {"given": [CONTEXT]}}


def fitting(model, start, end, answer="Rome"):
    """The longest prompt from start to end that the model takes with its answer."""
    words = 0
    while len(model.encode(f"{start}{' of' * (words + 1)} {end}", answer)) < model.context_length:
        words += 1
    return f"{start}{' of' * words} {end}"


@pytest.fixture(scope="module")
def model():
    return tiny.tiny_model("gptj")


@pytest.fixture(scope="module")
def long(model):
    """A fact whose prompt leaves no room for a text before it."""
    return EditRequest(fitting(model, "The capital", "France is"), "Rome", subject="France", id="long")


def by_method(name, **more):
    return lambda model, request: method(name, preset="none", **OPTIONS, **more).edit(model, [request])


def by_subjects(model, request):
    subject_rows(model, [request], CONTEXTS)


def by_chunks(model, request):
    answer_chunks(model, request, CONTEXT, 4)


def by_targets(model, request):
    find_target_vectors(model, [request], layer=1, options=TargetOptions(), templates=CONTEXTS)


@pytest.mark.parametrize(
    "puts_before",
    [
        by_method("rome", layers=[1], **tiny.second_moments()),
        by_method("wise"),
        by_subjects,
        by_chunks,
        by_targets,
    ],
    ids=["rome", "wise", "subjects", "chunks", "targets"],
)
def test_the_error_names_the_prompt_that_was_given(model, long, puts_before):
    with pytest.raises(DataError) as raised:
        puts_before(model, long)
    error = raised.value
    assert error.problem.endswith("behind the text that the method put before it, is longer than the model's context.")
    assert error.where == f"prompt {long.prompt[:60]!r}, behind {CONTEXT.removesuffix('{}')!r}"
    own = len(model.encode(long.prompt).prompt_ids)
    more = len(model.encode(CONTEXT.replace("{}", long.prompt[:60])).prompt_ids) - len(
        model.encode(long.prompt[:60]).prompt_ids
    )
    assert error.found.startswith(f"{own} tokens of the prompt, {more} more with the text before it, ")
    assert "contexts.given=[]" in error.remedy


def test_a_prompt_that_is_too_long_by_itself_is_said_as_such(model, long):
    longer = EditRequest("The of of of" + long.prompt.removeprefix("The"), "Rome", subject="France")
    with pytest.raises(DataError) as raised:
        encode_in_context(model, longer, CONTEXT, "Rome")
    assert raised.value.problem == "A prompt is longer than the model's context."
    assert raised.value.where == f"prompt {longer.prompt[:60]!r}"


def test_a_subject_at_the_sink_is_written_behind_two_texts_and_the_error_names_its_prompt():
    sunk = tiny.tiny_model("gpt2")
    with torch.no_grad():
        noise = torch.randn(sunk.sites.d_model, generator=torch.Generator().manual_seed(0))
        sunk.module.transformer.wpe.weight[0] += 30 * noise
    templates = (*CONTEXTS, "We know this: {}")
    # It fits behind each text alone, and the second of them is the longer one.
    prompt = fitting(sunk, "We know this: The has a capital", "and it is").removeprefix("We know this: ")
    request = EditRequest(prompt, "Rome", subject="The")
    assert sunk.encode(f"We know this: {prompt}", "Rome")
    with pytest.raises(DataError) as raised:
        apart_from_sink(sunk, [request], templates, 1)
    assert raised.value.where == f"prompt {prompt[:60]!r}, behind 'We know this: It was long ago. '"


def test_what_auto_makes_up_for_its_tests_is_left_out_where_it_does_not_fit(model, long):
    [trial] = make_trials(model, [long], num_contexts=3, num_neighbours=4, seed=0)
    assert trial.elsewhere == ()
    assert all(len(model.encode(prompt, "Rome")) <= model.context_length for prompt in trial.neighbours)
    short = EditRequest("The capital of France is", "Rome", subject="France")
    [trial] = make_trials(model, [short], num_contexts=3, num_neighbours=4, seed=0)
    assert len(trial.elsewhere) == 3 and len(trial.neighbours) == 4


def test_what_gates_are_quiet_at_besides_is_left_out_where_it_does_not_fit(model, long):
    short = EditRequest("The capital of France is", "Rome", subject="France")
    names = well_known_subjects(long.prompt)
    found = readings_beside(model, 1, [long, short], others=len(names), alike=8, seed=0)
    asked = [about(one, name).prompt for one in (long, short) for name in names if name != "France"]
    left_out = {as_words(prompt) for prompt in asked if not model.fits(prompt)}
    assert left_out and {as_words(prompt) for prompt in asked} - set(found.texts) == left_out
    # With all of them too long, an edit still holds what it can.
    editor = method(
        "subject-neurons", preset="none", layer=1, text=tiny.text_file(), max_tokens=256, contexts={"given": []}
    )
    assert editor.edit(model, [long]).patch.branches
