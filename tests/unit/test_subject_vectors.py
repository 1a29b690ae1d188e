"""Keys at the subject's last token against each prompt's own pass, and the contexts they are read in."""

import pytest
import torch

import tiny
from palimpsest import ConfigError, DataError, EditRequest, ModelError
from palimpsest.locating import contexts
from palimpsest.locating.contexts import ContextOptions, context_templates
from palimpsest.locating.subject_vectors import key_columns, subject_rows, subject_vectors
from palimpsest.models.hooks import Point
from palimpsest.models.tokens import subject_last_token
from palimpsest.patches.base import Manifest
from palimpsest.patches.weights import Dense, WeightPatch
from palimpsest.statistics.cache import Cache

TEMPLATES = ("{}", "It was written long ago. {}", "Rome. {}")
POINTS = [Point("mlp.down", 1, "input"), Point("mlp.down", 0, "input"), Point("mlp.down", 1), Point("resid", 1)]


@pytest.mark.parametrize("family", ["gptj", "bloom", "opt", "gemma2", "falcon", "phi3"])
def test_vectors_are_those_of_each_prompt_alone(family):
    model = tiny.tiny_model(family)
    found = subject_vectors(model, subject_rows(model, tiny.requests(), TEMPLATES), POINTS, forward_batch_size=5)
    for fact, request in enumerate(tiny.requests()):
        for rank, template in enumerate(TEMPLATES):
            text = template.replace("{}", request.prompt)
            column = subject_last_token(
                model.tokenizer, EditRequest(text, subject=request.subject, target_new="x"), chat=None
            )
            _, alone = model.capture([text], POINTS)
            for point in POINTS:
                assert found[point].shape[:2] == (4, 3)
                assert torch.allclose(found[point][fact, rank], alone[point][0, column], rtol=1e-5, atol=1e-4)


def test_nothing_above_the_deepest_point_is_computed(monkeypatch):
    model = tiny.tiny_model("gptj")
    monkeypatch.setattr(model.sites.block(2), "forward", lambda *_, **__: pytest.fail("block 2 was computed"))
    found = subject_vectors(model, subject_rows(model, tiny.requests()), POINTS)
    assert found[POINTS[0]].shape == (4, 1, 128)


def test_keys_are_in_single_precision_for_models_in_half():
    model = tiny.tiny_model("llama", dtype=torch.bfloat16)
    found = subject_vectors(model, subject_rows(model, tiny.requests()), POINTS)
    assert {vectors.dtype for vectors in found.values()} == {torch.float32}


def test_keys_of_a_solve():
    vectors = torch.tensor([[[1.0], [2.0], [6.0]], [[0.0], [3.0], [0.0]]])
    keys, weights = key_columns(vectors, "mean")
    assert keys[:, 0].tolist() == [3.0, 1.0] and weights.tolist() == [1.0, 1.0]
    assert key_columns(vectors, "half-clean")[0][:, 0].tolist() == [2.5, 0.75]
    assert key_columns(vectors[:, :1], "half-clean")[0].tolist() == [[1.0], [0.0]]
    keys, weights = key_columns(vectors, "columns")
    assert keys[:, 0].tolist() == [1.0, 2.0, 6.0, 0.0, 3.0, 0.0] and weights.tolist() == [pytest.approx(1 / 3)] * 6


def test_a_row_that_facts_share_is_computed_once():
    model = tiny.tiny_model("gptj")
    requests = [
        EditRequest(f"Anna Keller {ending}", subject="Anna Keller", target_new="x") for ending in ("is", "sang")
    ]
    subjects = subject_rows(model, requests, TEMPLATES)
    assert len(subjects.rows) == len(TEMPLATES) and subjects.numbers.tolist() == [[0, 1, 2]] * 2
    found = subject_vectors(model, subjects, POINTS[:1])[POINTS[0]]
    assert found.shape[:2] == (2, 3) and torch.equal(found[0], found[1])
    alone = subject_vectors(model, subjects.clean(), POINTS[:1])[POINTS[0]][:, 0]
    assert torch.allclose(alone, found[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "kind"),
    [
        ({"points": [Point("mlp.down", 3, "input")]}, ModelError),
        ({"points": [Point("mlp.dwn", 1)]}, ConfigError),
        ({"templates": ("a {} b",)}, ConfigError),
        ({"requests": [EditRequest("Rome is", target_new="x")]}, DataError),
    ],
)
def test_bad_input_costs_no_computation(changed, kind, monkeypatch):
    model = tiny.tiny_model("gptj")
    monkeypatch.setattr(model.module, "forward", lambda *_, **__: pytest.fail("something was computed"))
    call = {"requests": tiny.requests(), "points": POINTS, "templates": TEMPLATES, **changed}
    with pytest.raises(kind):
        subject_vectors(model, subject_rows(model, call["requests"], call["templates"]), call["points"])


def test_templates_are_the_models_own_texts_and_come_again_from_their_seed():
    model = tiny.tiny_model("gptj")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    options = ContextOptions(starts=["Rome", "It was"], lengths=[4, 7], per_start=2, top_k=3)
    first = context_templates(model, options, seed=5)
    assert torch.equal(torch.get_rng_state(), before), "no other generator is drawn from"
    assert first == context_templates(model, options, seed=5)
    assert first != context_templates(model, options, seed=6)
    assert first[0] == "{}"
    assert len(first) == len(set(first)) <= 1 + 2 * 2 * 2
    for template in first[1:]:
        assert template.endswith(". {}")
        assert template.count("{") == template.count("}") == 1
        assert template.startswith(("Rome", "It was"))


def test_with_one_choice_a_text_is_the_greedy_continuation():
    model = tiny.tiny_model("llama")
    ids = list(model.encode("Rome").ids)
    while len(ids) < 6:
        with torch.no_grad():
            ids.append(int(model.module(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    text = " ".join(model.tokenizer.decode(ids, skip_special_tokens=True).replace("{", " ").replace("}", " ").split())
    options = ContextOptions(starts=["Rome"], lengths=[6], top_k=1)
    assert context_templates(model, options, seed=0) == ("{}", f"{text}. {{}}")


def test_the_published_numbers_of_texts(monkeypatch, tmp_path):
    model = tiny.tiny_model("gptj")
    asked = []
    monkeypatch.setattr(
        contexts, "_continued", lambda _m, starts, length, *_: asked.append((len(starts), length)) or []
    )
    for options in (contexts.ROME, contexts.MEMIT, contexts.NO_CONTEXTS):
        context_templates(model, options, seed=0, cache=Cache(tmp_path))
    assert asked == [(10, 5), (10, 10), (5, 10)]


def test_given_templates():
    model = tiny.tiny_model("gptj")
    given = ContextOptions(given=["I know that {}", "{}", "I know that {}"])
    assert context_templates(model, given, seed=0) == ("{}", "I know that {}")
    assert context_templates(model, contexts.NO_CONTEXTS, seed=0) == ("{}",)


@pytest.mark.parametrize("extra", [{"given": ["no place"]}, {"given": ["{} behind"]}, {"lengths": [0]}, {"top_k": 0}])
def test_context_options_that_cannot_be(extra):
    with pytest.raises(ConfigError):
        ContextOptions.parse(extra, owner="method")


def test_contexts_are_written_once_and_a_patched_model_writes_its_own(monkeypatch, tmp_path):
    model, cache, options = tiny.tiny_model("llama"), Cache(tmp_path), ContextOptions(lengths=[4])
    first = context_templates(model, options, seed=3, cache=cache)
    (kept,) = cache.folder.glob("*.safetensors")
    head = model.weights.base("lm_head.weight")
    patch = WeightPatch({"lm_head.weight": Dense(-2 * head)}, Manifest(label="turned"))
    with model.patched(patch):
        there = context_templates(model, options, seed=3, cache=cache)
        with model.weights.without_changes():
            assert context_templates(model, options, seed=3, cache=cache) == first
    assert there != first and len(list(cache.folder.glob("*.safetensors"))) == 1
    with monkeypatch.context() as patched:
        patched.setattr(contexts, "logits_by_step", lambda *_: pytest.fail("the model was asked again"))
        assert context_templates(model, options, seed=3, cache=cache) == first
    assert context_templates(model, options, seed=4, cache=cache) != first
    kept.write_bytes(kept.read_bytes()[:-7])
    assert context_templates(model, options, seed=3, cache=cache) == first
    assert "put aside" in cache.notes[0]
