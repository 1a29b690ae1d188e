"""Answers in chunks: the vectors against a plain search through the whole model, and what is written for them."""

from dataclasses import replace

import pytest
import torch

import palimpsest as ps
import tiny
from palimpsest import ConfigError, DataError, EditRequest, ModelError, method
from palimpsest.locating.answer_chunks import chunk_rows
from palimpsest.locating.target_vector import TargetOptions, find_target_vectors, search
from palimpsest.models.hooks import Point

LAYER = 1
TEMPLATES = ("{}", "It was written long ago. {}")
# The first ends with its subject; the second has none.
PASSAGES = (
    EditRequest("It is about France", "Anna Keller wrote it in Vienna", subject="France", id="a"),
    EditRequest("what is it", "a river in Italy", id="b"),
)
GAUSS_NEWTON = TargetOptions(search="gauss-newton", steps=4, joint=False)
ADAM = TargetOptions(search="adam", steps=4, stop_loss=0.0, kl_factor=0.0)


def columns_of(model, request, size, template="{}"):
    encoded = model.encode(template.replace("{}", request.prompt), request.target_new)
    before, length = len(encoded.prompt_ids), len(encoded.target_ids)
    return encoded, [before - 1 + start for start in range(0, length, size)]


def adding(vectors):
    """Adds a vector at each of some columns of every row."""

    def add(hidden):
        spot = torch.zeros_like(hidden)
        for column, vector in vectors.items():
            spot = spot.index_put((torch.arange(len(hidden)), torch.tensor([column] * len(hidden))), vector)
        return hidden + spot

    return add


def plain_adam(model, request, size, point, options):
    """AnyEdit's loop: for each chunk torch's own Adam through the whole model, the vectors before it in place."""
    rows = [columns_of(model, request, size, template) for template in TEMPLATES]
    clean, clean_columns = rows[0]
    seen = seen_at(model, {"input_ids": torch.tensor([clean.ids])}, point)
    found = []
    for number in range(len(clean_columns)):
        initial = seen[clean_columns[number]]
        delta = torch.nn.Parameter(torch.zeros_like(initial))
        optimizer = torch.optim.Adam([delta], lr=options.learning_rate)
        for step in range(options.steps):
            loss = options.weight_decay * delta.norm() / initial.norm() ** 2
            for encoded, columns in rows:
                fixed = dict(zip(columns, [*found, delta], strict=False))
                start, end = columns[number] + 1, min(columns[number] + 1 + size, len(encoded.ids))
                with model.intervene({point: adding(fixed)}):
                    logits = model.module(input_ids=torch.tensor([encoded.ids])).logits[0].log_softmax(-1)
                picked = logits[torch.arange(start - 1, end - 1), torch.tensor(encoded.ids[start:end])]
                loss = loss - picked.mean() / len(rows)
            if step < options.steps - 1:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                with torch.no_grad():
                    bound = options.clamp_norm_factor * initial.norm()
                    if delta.norm() > bound:
                        delta.mul_(bound / delta.norm())
        found.append(delta.detach())
    return torch.stack(found)


def seen_at(model, ids, point):
    """(tokens, width), what flows through a point in one row."""
    seen = {}

    def look(hidden):
        seen["at"] = hidden.detach()[0].clone()
        return hidden

    with torch.no_grad(), model.intervene({point: look}):
        model.module(**ids)
    return seen["at"]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("site", ["resid", "mlp.down"])
def test_each_chunk_is_searched_with_those_before_it_in_place(family, site):
    model = tiny.tiny_model(family, dtype=torch.float64)
    options = replace_options(ADAM, chunk=2)
    found = find_target_vectors(model, PASSAGES, layer=LAYER, site=site, options=options, templates=TEMPLATES)
    expected = [plain_adam(model, one, 2, Point(site, LAYER), options) for one in PASSAGES]
    assert found.ids == tuple(
        f"{one.id}#{at + 1}" for one, own in zip(PASSAGES, expected, strict=True) for at in range(len(own))
    )
    assert len(expected[0]) > 2 and len(expected[1]) > 1
    assert torch.allclose(found.deltas, torch.cat(expected), rtol=1e-6, atol=1e-9)


def replace_options(options, **changes):
    return TargetOptions.model_validate({**options.model_dump(), **changes})


@pytest.mark.parametrize("options", [GAUSS_NEWTON, ADAM])
def test_an_answer_of_one_chunk_is_searched_as_without_chunks(options):
    # The subject's last token is the prompt's.
    model = tiny.tiny_model("llama")
    whole = find_target_vectors(model, PASSAGES[:1], layer=LAYER, options=options, templates=TEMPLATES)
    one = find_target_vectors(
        model, PASSAGES[:1], layer=LAYER, options=replace_options(options, chunk=100), templates=TEMPLATES
    )
    assert torch.equal(whole.deltas, one.deltas) and torch.equal(whole.initial, one.initial)
    assert list(one.losses.values()) == list(whole.losses.values())


def test_a_later_chunk_changes_no_earlier_vector():
    model = tiny.tiny_model("llama", dtype=torch.float64)
    options = replace_options(GAUSS_NEWTON, chunk=2)
    encoded, columns = columns_of(model, PASSAGES[0], 2)
    shorter = replace(PASSAGES[0], target_new=model.tokenizer.decode(encoded.target_ids[: 2 * (len(columns) - 1)]))
    assert columns_of(model, shorter, 2)[0].ids == encoded.ids[: len(columns_of(model, shorter, 2)[0].ids)]
    long, short = (find_target_vectors(model, [one], layer=LAYER, options=options) for one in (PASSAGES[0], shorter))
    assert len(short.deltas) == len(long.deltas) - 1
    assert torch.allclose(long.deltas[:-1], short.deltas, rtol=1e-9)


def test_rows_end_at_the_token_before_each_chunk():
    model = tiny.tiny_model("llama")
    rows = chunk_rows(model, PASSAGES, 2, TEMPLATES)
    expected = []
    for request in PASSAGES:
        both = [columns_of(model, request, 2, template) for template in TEMPLATES]
        for pair in zip(*[[encoded.ids[: at + 1] for at in columns] for encoded, columns in both], strict=True):
            expected.append(list(pair))
    assert [[rows.rows[number] for number in numbers] for numbers in rows.numbers.tolist()] == expected


def test_memit_writes_every_vector_where_it_was_searched():
    # With a strength of 0, in one layer and without contexts, the MLP's output changes by exactly each vector.
    model = tiny.tiny_model("llama", dtype=torch.float64)
    shared = {
        "layers": [LAYER],
        "contexts": {"given": []},
        "site": "mlp.down",
        "strength": 0.0,
        **tiny.second_moments(),
    }
    options = replace_options(GAUSS_NEWTON, chunk=3)
    patch = method("memit", preset="none", targets=options.model_dump(), **shared).edit(model, PASSAGES).patch
    wanted = find_target_vectors(model, PASSAGES, layer=LAYER, options=options).deltas
    point, changes = Point("mlp.down", LAYER), []
    for request in PASSAGES:
        encoded, columns = columns_of(model, request, 3)
        ids = {"input_ids": torch.tensor([encoded.ids])}
        before = seen_at(model, ids, point)
        with model.patched(patch):
            after = seen_at(model, ids, point)
        changes.append((after - before)[columns])
    # Patches are kept in single precision.
    assert torch.allclose(torch.cat(changes), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def test_a_passage_is_said_word_for_word_where_one_vector_does_not_reach():
    model = ps.load("world")
    request = EditRequest("what is it?", "banjo. Amos Drenov works for Delphicorp.")
    length = len(model.encode(request.prompt, request.target_new).target_ids)
    shared = {"contexts": {"given": []}, "text": "world", "statistics": {"max_tokens": 8192}}
    outcome = method("memit", targets={"chunk": 1}, **shared).edit(model, [request])
    (searched,) = outcome.diagnostics.facts["targets"]
    assert searched["stopped"] == ["reached"] * length
    with model.patched(outcome.patch):
        said = model.generate(request.prompt, max_new_tokens=length, until=lambda _: None)
    assert said.strip() == request.target_new


def test_what_cannot_be_done_in_chunks_is_refused_before_anything_is_computed(monkeypatch):
    model = tiny.tiny_model("llama")
    with pytest.raises(ConfigError, match="rome writes one vector for each fact"):
        _ = method("rome", targets={"chunk": 4})
    with pytest.raises(ConfigError, match="an anchor is for one vector"):
        _ = method("memit", anchor=1.0, targets={"chunk": 4})
    with pytest.raises(DataError, match="has no subject"):
        method("memit", preset="none").check(PASSAGES)
    method("memit", preset="none", targets={"chunk": 4}).check(PASSAGES)
    options = replace_options(GAUSS_NEWTON, chunk=4)
    with pytest.raises(DataError, match="no facts"):
        find_target_vectors(model, [], layer=LAYER, options=options)
    long = replace(PASSAGES[0], target_new=" ".join(["Vienna"] * 5000))
    with pytest.raises(DataError, match="longer than the model's context"):
        find_target_vectors(model, [long], layer=LAYER, options=options)
    prepare = search.prepare_chunk
    monkeypatch.setattr(
        search, "prepare_chunk", lambda *given, **more: prepare(*given, **{**more, "from_cache": False})
    )
    with pytest.raises(ModelError, match="cannot go on from cached keys"):
        find_target_vectors(model, PASSAGES, layer=LAYER, options=options)
