"""The batched search for target vectors against one fact at a time, through the whole model, written plainly."""

import math
from dataclasses import replace

import pytest
import torch

import tiny
from palimpsest import ConfigError, DataError, EditRequest, ModelError
from palimpsest.locating.subject_vectors import subject_rows, subject_vectors
from palimpsest.locating.target_vector import TargetOptions, find_target_vectors
from palimpsest.locating.target_vector.chunk import RowGroup
from palimpsest.locating.target_vector.gauss_newton import steps_to
from palimpsest.models.hooks import Point
from palimpsest.models.tokens import subject_last_token

TEMPLATES = ("{}", "It was written long ago. {}", "Rome. {}")
LAYER = 1
# Prompts that end with their subjects, so that a vector there speaks directly: answers come within a few steps.
CLOSING = [
    EditRequest(f"It is about {subject}", subject=subject, target_new=target, id=f"closing-{index}")
    for index, (subject, target) in enumerate(
        [("France", "Paris"), ("Italy", "Oslo"), ("Vienna", "a river"), ("Anna Keller", "people")]
    )
]


def state(model):
    return {name: value.clone() for name, value in model.module.state_dict().items()}


def is_untouched(model, before, flags):
    now = model.module.state_dict()
    return (
        all(torch.equal(now[name], value) for name, value in before.items())
        and flags == [parameter.requires_grad for parameter in model.module.parameters()]
        and all(parameter.grad is None for parameter in model.module.parameters())
        and not any("forward" in module.__dict__ or module._forward_hooks for module in model.module.modules())
    )


def naive_pass(model, text, subject, target, deltas):
    """(logits, last prompt token, ids, subject's column) of one text through the whole model, with vectors added."""
    encoded = model.encode(text, target) if target else model.encode(text)
    column = subject_last_token(model.tokenizer, EditRequest(text, subject=subject, target_new="x"), chat=None)

    def adding(delta):
        def add(hidden):
            spot = torch.zeros_like(hidden)
            spot[:, column] = 1
            return hidden + spot * delta

        return add

    ids = torch.tensor([encoded.ids])
    with model.intervene({point: adding(delta) for point, delta in deltas.items()}):
        logits = model.module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    return logits, len(encoded.prompt_ids) - 1, encoded, column


def naive_answers(model, request, templates, deltas):
    """For each context (log-probabilities, (tokens,), of the answer's tokens; whether each is the most probable)."""
    for template in templates:
        text = template.replace("{}", request.prompt)
        logits, last, row, _ = naive_pass(model, text, request.subject, request.target_new, deltas)
        labels = torch.tensor(row.target_ids)
        places = last + torch.arange(len(labels))
        yield logits.log_softmax(-1)[places, labels], logits[places].argmax(-1) == labels


def at_subject(model, request, point):
    _, found = model.capture([request.prompt], [point])
    return found[point][0, subject_last_token(model.tokenizer, request, chat=None)]


def naive_adam(model, request, points, options, templates=TEMPLATES):
    """ROME's search as its paper and code describe it: one fact, one row after another, torch's own Adam."""
    initial = {point: at_subject(model, request, point) for point in points}
    # In units of |h| / sqrt(width) a step of Adam is as long as the learning rate says, relative to |h|.
    stream = at_subject(model, request, Point("resid", points[0].layer))
    unit = stream.norm() / len(stream) ** 0.5 if options.learning_rate_unit == "relative" else 1.0
    scaled = {point: torch.zeros_like(vector, requires_grad=True) for point, vector in initial.items()}
    optimizer = torch.optim.Adam(list(scaled.values()), lr=options.learning_rate)
    losses, kept, weight = [], None, 1.0
    for step in range(options.steps):
        deltas = {point: vector * unit for point, vector in scaled.items()}
        answers = list(naive_answers(model, request, templates, deltas))
        nll = sum(-log_probs.mean() for log_probs, _ in answers) / len(answers)
        logits, last, _, column = naive_pass(model, f"{request.subject} is a", request.subject, None, deltas)
        now = logits[column if options.kl_position == "subject" else last].log_softmax(-1)
        kept = now.detach() if kept is None else kept
        divergence = (now.exp() * (now - kept)).sum()
        decay = sum(delta.norm() / initial[point].norm() ** 2 for point, delta in deltas.items())
        loss = weight * nll + options.kl_factor * divergence + options.weight_decay * decay
        losses.append(loss.item())
        is_done = (loss if options.stop_on == "total" else nll) < options.stop_loss
        if options.relax_when_said:
            is_said = all(bool(hits.all()) for _, hits in answers)
            weight = 0.1 if is_said else 1.0
            is_done = is_done or (is_said and divergence <= 0.01)
        if is_done or step == options.steps - 1:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for point, vector in scaled.items():
                bound = (options.clamp_norm_factor or math.inf) * initial[point].norm()
                if vector.norm() * unit > bound:
                    vector *= bound / (vector.norm() * unit)
    return {point: delta.detach() for point, delta in deltas.items()}, initial, losses


def naive_gauss_newton(model, requests, point, options, templates):
    """One vector for some facts, one row after another.

    Returns (best vector, negative log-likelihoods, how often the radius was halved).
    """
    request = requests[0]
    scale = at_subject(model, request, Point("resid", point.layer) if is_residual(model) else point).norm()
    delta = torch.zeros_like(at_subject(model, request, point), requires_grad=True)
    radius, last, best, nlls, halvings = options.max_step * scale, math.inf, None, [], 0
    for step in range(options.steps):
        rows = [
            log_probs.sum() for one in requests for log_probs, _ in naive_answers(model, one, templates, {point: delta})
        ]
        slopes = torch.stack([torch.autograd.grad(row, delta, retain_graph=True)[0] for row in rows])
        log_probs = torch.stack(rows).detach()
        nll = -log_probs.mean().item()
        if not nlls or nll < min(nlls):
            best = delta.detach().clone()
        nlls.append(nll)
        if nll < options.stop_loss or step == options.steps - 1:
            break
        if nll > last:
            radius, halvings = radius / 2, halvings + 1
        last = nll
        jacobian = slopes / (1 - log_probs.exp())[:, None]
        wanted = (options.log_odds - (log_probs - (1 - log_probs.exp()).log())).clamp(min=0)
        square = jacobian @ jacobian.T
        if len(rows) > 1:
            square = square + options.damping * square.diagonal().mean() * torch.eye(len(rows))
        move = jacobian.T @ square.inverse() @ wanted
        move = move * min(1.0, (radius / move.norm()).item())
        delta = (delta.detach() + move).requires_grad_()
    return best, nlls, halvings


def is_residual(model):
    return model.sites.architecture.mlp_writes_residual


ADAM_CASES = [
    ("gptj", ("mlp.down",), {}),
    ("gptj", ("resid",), {"clamp_norm_factor": 0.05}),
    ("gpt2", ("mlp.down",), {"kl_position": "last", "kl_factor": 1.0}),
    ("gpt2", ("mlp.down",), {"learning_rate_unit": "relative", "learning_rate": 0.1, "stop_on": "likelihood"}),
    ("llama", ("resid",), {"learning_rate": 0.5}),
    ("gemma2", ("mlp.down",), {}),
    ("bloom", ("resid",), {"forward_batch_size": 2}),
    ("falcon-multi-head", ("resid",), {"clamp_norm_factor": None}),
    ("opt", ("mlp.down",), {"forward_batch_size": 5}),
    ("gpt2", ("mlp.down", "attn.out"), {"learning_rate": 0.3, "clamp_norm_factor": 0.4}),
]


@pytest.mark.parametrize(("family", "sites", "extra"), ADAM_CASES)
def test_adam_is_the_one_at_a_time_search(family, sites, extra):
    model = tiny.tiny_model(family, dtype=torch.float64)
    options = TargetOptions(**{"steps": 8, "learning_rate": 0.2, "weight_decay": 0.5, "stop_loss": 7.0, **extra})
    before, flags = state(model), [parameter.requires_grad for parameter in model.module.parameters()]
    site, *companions = sites
    found = find_target_vectors(
        model,
        tiny.requests(),
        layer=LAYER,
        site=site,
        companions=companions,
        options=options,
        templates=TEMPLATES,
    )
    assert is_untouched(model, before, flags)
    assert not found.is_whole_forward
    for index, request in enumerate(tiny.requests()):
        points = [Point(one, LAYER) for one in sites]
        deltas, initial, losses = naive_adam(model, request, points, options)
        assert found.losses[request.id] == pytest.approx(losses, rel=1e-6)
        assert torch.allclose(found.initial[index], initial[points[0]], atol=1e-6)
        for point in points:
            own = found.deltas if point.site == site else found.companions[point.site]
            assert (own[index] - deltas[point]).norm() <= 1e-5 * deltas[point].norm()
        assert torch.equal(found.targets[index], found.initial[index] + found.deltas[index])
    assert len(set(found.passes)) > 1, "the facts stop after different numbers of passes"
    assert "reached" in found.stopped


def test_pmets_rule_is_the_one_at_a_time_rule():
    model = tiny.tiny_model("gptj", dtype=torch.float64)
    options = TargetOptions(
        relax_when_said=True, steps=12, learning_rate=1.0, kl_factor=0.01, kl_position="last", clamp_norm_factor=4.0
    )
    found = find_target_vectors(
        model, CLOSING, layer=LAYER, companions=["attn.out"], options=options, templates=TEMPLATES
    )
    points = [Point("mlp.down", LAYER), Point("attn.out", LAYER)]
    for index, request in enumerate(CLOSING):
        deltas, _, losses = naive_adam(model, request, points, options)
        assert found.losses[request.id] == pytest.approx(losses, rel=1e-6)
        assert (found.deltas[index] - deltas[points[0]]).norm() <= 1e-5 * deltas[points[0]].norm()
        assert (found.companions["attn.out"][index] - deltas[points[1]]).norm() <= 1e-5 * deltas[points[1]].norm()
    assert found.stopped == ("reached", "steps", "steps", "steps"), "its answer was said and its essence kept"
    weighed = [losses[-1] < 0.5 * found.nlls[identity][-1] for identity, losses in found.losses.items()]
    assert weighed == [False, True, False, True], "a said answer weighs a tenth"


# In single precision Adam magnifies rounding without bound where a component's gradient passes through zero, as one of
# the tiny GPT-2's does; the plain search is as far from its own float64 result there. These have no such component.
@pytest.mark.parametrize("family", ["gptj", "llama"])
def test_adam_is_that_search_in_single_precision_too(family):
    model = tiny.tiny_model(family)
    options = TargetOptions(steps=8, learning_rate=0.2, stop_loss=0.0)
    found = find_target_vectors(model, tiny.requests(), layer=LAYER, options=options, templates=TEMPLATES)
    point = Point("mlp.down", LAYER)
    for index, request in enumerate(tiny.requests()):
        deltas, _, losses = naive_adam(model, request, [point], options)
        assert found.losses[request.id] == pytest.approx(losses, rel=1e-5)
        assert (found.deltas[index] - deltas[point]).norm() <= 1e-5 * deltas[point].norm()


@pytest.mark.parametrize("templates", [("{}",), TEMPLATES])
@pytest.mark.parametrize("family", ["gpt2", "gptj", "gemma2"])
def test_gauss_newton_is_the_one_at_a_time_search(family, templates):
    model = tiny.tiny_model(family, dtype=torch.float64)
    options = TargetOptions(search="gauss-newton", steps=9, joint_by="key")
    requests = [*tiny.requests(2), *CLOSING[:2]]
    found = find_target_vectors(model, requests, layer=LAYER, options=options, templates=templates)
    # The others compute rotations, softmax or norms in single precision, whatever their weights are in.
    tolerance, halved = 1e-7 if family == "gpt2" else 1e-4, 0
    for index, request in enumerate(requests):
        delta, nlls, halvings = naive_gauss_newton(model, [request], Point("mlp.down", LAYER), options, templates)
        halved += halvings
        assert found.losses[request.id] == pytest.approx(nlls, rel=tolerance, abs=tolerance)
        assert (found.deltas[index] - delta).norm() <= tolerance * delta.norm()
    assert halved, "a radius was halved"
    assert ("reached" in found.stopped) == (family == "gpt2")


@pytest.mark.parametrize("templates", [("{}",), TEMPLATES])
def test_facts_with_one_key_get_one_vector_that_is_searched_for_all(templates):
    model, point = tiny.tiny_model("gpt2", dtype=torch.float64), Point("mlp.down", LAYER)
    sharing = [
        EditRequest(f"It is about Vienna{rest}", subject="Vienna", target_new=target, id=f"sharing-{index}")
        for index, (rest, target) in enumerate([("", "Paris"), (", which", "Rome"), (" and people", "the Danube")])
    ]
    requests = [sharing[0], CLOSING[0], *sharing[1:], CLOSING[1]]
    options = TargetOptions(search="gauss-newton", steps=6, joint_by="key")
    found = find_target_vectors(model, requests, layer=LAYER, options=options, templates=templates)
    delta, nlls, _ = naive_gauss_newton(model, sharing, point, options, templates)
    alone, _, _ = naive_gauss_newton(model, [sharing[0]], point, options, templates)
    for index in (0, 2, 3):
        assert (found.deltas[index] - delta).norm() <= 1e-7 * delta.norm()
        assert found.losses[requests[index].id] == pytest.approx(nlls, rel=1e-7)
    assert (alone - delta).norm() > 0.1 * delta.norm()
    for index in (1, 4):
        delta, nlls, _ = naive_gauss_newton(model, [requests[index]], point, options, templates)
        assert (found.deltas[index] - delta).norm() <= 1e-7 * delta.norm()
    apart = TargetOptions(search="gauss-newton", steps=6, joint=False)
    found = find_target_vectors(model, requests, layer=LAYER, options=apart, templates=templates)
    assert (found.deltas[0] - alone).norm() <= 1e-7 * alone.norm()


def test_facts_about_one_subject_get_one_vector_whatever_stands_before_it():
    model, point = tiny.tiny_model("gpt2", dtype=torch.float64), Point("mlp.down", LAYER)
    prompts = [("It is about Vienna", "Paris"), ("The river of Vienna is", "Rome")]
    sharing = [
        EditRequest(prompt, subject="Vienna", target_new=target, id=f"sharing-{index}")
        for index, (prompt, target) in enumerate(prompts)
    ]
    requests = [sharing[0], CLOSING[0], sharing[1]]
    options = TargetOptions(search="gauss-newton", steps=6)
    found = find_target_vectors(model, requests, layer=LAYER, options=options)
    delta, _, _ = naive_gauss_newton(model, sharing, point, options, ("{}",))
    other, _, _ = naive_gauss_newton(model, [CLOSING[0]], point, options, ("{}",))
    for index, wanted in ((0, delta), (1, other), (2, delta)):
        assert (found.deltas[index] - wanted).norm() <= 1e-7 * wanted.norm()
    # What flows there is each prompt's own.
    for index, request in enumerate(requests):
        rows = subject_rows(model, [request])
        own = subject_vectors(model, rows, [point])[point][0, 0]
        torch.testing.assert_close(found.initial[index], own, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(found.targets[index], own + found.deltas[index], rtol=1e-6, atol=1e-9)
    assert (found.initial[0] - found.initial[2]).norm() > 1e-3 * found.initial[0].norm()


def test_a_step_against_one_written_out():
    # J = (ds/d delta) / (1 - P). First fact: one row with P = 1/2, so o = 0 and J = (6, 8), |J|^2 = 100; the way to
    # log-odds 4 is 4 J / 100. Second: the same, but no longer than 0.1. Third: beyond the aim already.
    log_probs = torch.tensor([[0.5], [0.5], [0.999]], dtype=torch.float64).log()
    slopes = torch.tensor([[[3.0, 4.0]], [[3.0, 4.0]], [[3.0, 4.0]]], dtype=torch.float64)
    radius = torch.tensor([1.0, 0.1, 1.0], dtype=torch.float64)
    steps = steps_to(4.0, log_probs, slopes, counts=torch.tensor([1, 1, 1]), damping=1e-3, radius=radius)
    expected = torch.tensor([[0.24, 0.32], [0.06, 0.08], [0.0, 0.0]], dtype=torch.float64)
    assert torch.allclose(steps, expected, atol=1e-12)


@pytest.mark.parametrize("log_prob", [0.0, -1e-20, -1e4])
def test_a_step_is_finite_where_the_answer_is_certain_or_hopeless(log_prob):
    for slope in (0.0, 1e-12, 1.0):
        slopes = torch.full((1, 2, 3), slope)
        counts, log_probs = torch.tensor([2]), torch.full((1, 2), log_prob)
        steps = steps_to(4.0, log_probs, slopes, counts=counts, damping=1e-3, radius=torch.ones(1))
        assert steps.isfinite().all()
        assert steps.norm() <= 1 + 1e-6


LONG = EditRequest(
    "It was written in", subject="It", target_new="a house by the river that flows through Vienna, long ago", id="long"
)


@pytest.mark.parametrize("search", ["adam", "gauss-newton"])
def test_a_batch_is_each_fact_alone(search):
    model = tiny.tiny_model("gpt2", dtype=torch.float64)
    # Subjects at the very beginning and the very end, answers of one to two dozen tokens, some stopping early.
    requests = [*CLOSING, LONG, *tiny.requests()]
    stop = 0.5 if search == "gauss-newton" else 6.0
    options = TargetOptions(
        search=search, steps=7, stop_loss=stop, forward_batch_size=7, learning_rate=0.3, joint=False
    )
    together = find_target_vectors(model, requests, layer=LAYER, options=options, templates=TEMPLATES)
    assert len({len(model.encode("x", request.target_new).target_ids) for request in requests}) > 3
    assert {"reached", "steps"} == set(together.stopped)
    for index, request in enumerate(requests):
        alone = find_target_vectors(model, [request], layer=LAYER, options=options, templates=TEMPLATES)
        assert alone.passes[0] == together.passes[index]
        assert alone.stopped[0] == together.stopped[index]
        assert (alone.deltas[0] - together.deltas[index]).norm() <= 1e-8 * alone.deltas[0].norm()


@pytest.mark.parametrize("search", ["adam", "gauss-newton"])
def test_all_facts_of_one_length_may_stop_before_the_others(search, monkeypatch):
    passes = []
    monkeypatch.setattr(
        RowGroup, "logits", lambda self, vectors, own=RowGroup.logits: passes.append(1) or own(self, vectors)
    )
    model = tiny.tiny_model("gpt2", dtype=torch.float64)
    # Answers right behind their subjects come at once; those with more in between are a group of their own, and do not.
    quick = [replace(CLOSING[1], id=f"quick-{n}") for n in range(16)]
    slow = [replace(one, prompt=one.prompt + " by the people", id=f"slow-{n}") for n, one in enumerate(quick)]
    # They share one key; here each is to be a fact of its own.
    options = TargetOptions(search=search, steps=5, stop_loss=5.0, kl_factor=0.0, learning_rate=1.0, joint=False)
    found = find_target_vectors(model, [*slow, *quick], layer=LAYER, options=options)
    most, least = found.passes[0], found.passes[-1]
    assert found.passes == (most,) * 16 + (least,) * 16
    assert len(passes) == most + least < 2 * most, "a group of which nothing is left is not run"


@pytest.mark.parametrize("search", ["adam", "gauss-newton"])
def test_a_fact_that_has_stopped_moves_no_more(search):
    model = tiny.tiny_model("gpt2", dtype=torch.float64)
    extra = {"search": search, "stop_loss": 1.4, "learning_rate": 1.0, "kl_factor": 0.0, "joint": False}
    requests = [*CLOSING[:2], *tiny.requests(2)]
    full = find_target_vectors(model, requests, layer=LAYER, options=TargetOptions(steps=12, **extra))
    early = [index for index, why in enumerate(full.stopped) if why == "reached"]
    assert 0 < len(early) < len(requests)
    late = [request.id for n, request in enumerate(requests) if n not in early]
    assert any(late[0] in note for note in full.notes())
    for index in early:
        short = TargetOptions(steps=full.passes[index], **extra)
        cut = find_target_vectors(model, requests, layer=LAYER, options=short)
        assert torch.allclose(cut.deltas[index], full.deltas[index], rtol=1e-9)
        assert full.nlls[requests[index].id][-1] < 1.4


@pytest.mark.parametrize("factor", [0.05, 0.3])
def test_every_vector_stays_in_its_own_ball(factor):
    model = tiny.tiny_model("llama", dtype=torch.float64)
    options = TargetOptions(steps=6, clamp_norm_factor=factor)
    found = find_target_vectors(model, tiny.requests(), layer=LAYER, site="resid", options=options)
    ratios = found.deltas.norm(dim=1) / found.initial.norm(dim=1)
    assert ratios.tolist() == pytest.approx([factor] * len(ratios), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("compute", ["model", "float32"])
def test_models_in_half_precision(dtype, compute):
    model = tiny.tiny_model("gpt2", dtype=dtype)
    exact = tiny.tiny_model("gpt2", dtype=dtype)
    exact.module.float()
    options = TargetOptions(search="gauss-newton", compute_dtype=compute, steps=10)
    before, flags = state(model), [parameter.requires_grad for parameter in model.module.parameters()]
    found = find_target_vectors(model, CLOSING[:2], layer=LAYER, options=options)
    assert is_untouched(model, before, flags)
    assert found.deltas.dtype == torch.float32
    assert found.stopped == ("reached", "reached")
    for index, request in enumerate(CLOSING[:2]):
        (answers,) = naive_answers(exact, request, ("{}",), {Point("mlp.down", LAYER): found.deltas[index]})
        assert -answers[0].sum() < 0.1, "the vector does the same in single precision"


def test_upper_blocks_in_bfloat16_find_vectors_that_hold_in_single_precision():
    model = tiny.tiny_model("gpt2")
    options = TargetOptions(search="gauss-newton", compute_dtype="bfloat16", steps=12)
    before, flags = state(model), [parameter.requires_grad for parameter in model.module.parameters()]
    found = find_target_vectors(model, CLOSING[:2], layer=LAYER, options=options)
    assert is_untouched(model, before, flags)
    for index, request in enumerate(CLOSING[:2]):
        (answers,) = naive_answers(model, request, ("{}",), {Point("mlp.down", LAYER): found.deltas[index]})
        assert -answers[0].sum() < 0.1


def test_the_model_is_whole_again_after_an_interrupt():
    model = tiny.tiny_model("gptj")
    before, flags = state(model), [parameter.requires_grad for parameter in model.module.parameters()]

    def interrupt(_stage, done, _total):
        if done:
            raise KeyboardInterrupt

    options = TargetOptions(compute_dtype="bfloat16", forward_batch_size=2, steps=2)
    with pytest.raises(KeyboardInterrupt):
        find_target_vectors(model, tiny.requests(), layer=LAYER, options=options, progress=interrupt)
    assert is_untouched(model, before, flags)


def test_numbers_that_are_not_finite_are_named():
    model = tiny.tiny_model("gptj")
    with torch.no_grad():
        model.module.transformer.h[2].mlp.fc_out.weight.fill_(math.nan)
    with pytest.raises(ModelError, match="no finite likelihood") as raised:
        find_target_vectors(model, tiny.requests(2), layer=LAYER, options=TargetOptions())
    assert "fact-0" in str(raised.value)


def test_a_fact_that_diverges_keeps_its_last_finite_vector():
    model = tiny.tiny_model("gptj")
    options = TargetOptions(learning_rate=1e30, clamp_norm_factor=None, steps=4, stop_loss=0.0)
    found = find_target_vectors(model, tiny.requests(2), layer=LAYER, options=options)
    assert found.stopped == ("diverged", "diverged")
    assert found.deltas.isfinite().all()
    assert "diverged: edit fact-0, fact-1" in found.notes()[0]


def bad(prompt="The capital of France is", subject="France", target="Paris"):
    return [tiny.requests(1)[0], EditRequest(prompt, subject=subject, target_new=target, id="bad")]


BAD_INPUT = [
    ({"layer": 3}, ModelError, "layer is out of range"),
    ({"layer": -1}, ModelError, "layer is out of range"),
    ({"site": "mlp.dwn"}, ConfigError, "mlp.down"),
    ({"templates": ("{} and",)}, ConfigError, "invalid"),
    ({"templates": ("{} {}",)}, ConfigError, "invalid"),
    ({"templates": ("Rome. {}",)}, ConfigError, "first context"),
    ({"templates": ()}, ConfigError, "first context"),
    ({"options": TargetOptions(loss_layer=0)}, ModelError, "loss cannot be read"),
    ({"options": TargetOptions(loss_layer=3)}, ModelError, "loss cannot be read"),
    ({"requests": []}, DataError, "no facts"),
    ({"requests": bad(subject=None)}, DataError, "no subject"),
    ({"requests": bad(target="Rome " * 200)}, DataError, "longer than the model's context"),
    ({"requests": bad(prompt="Rome " * 200 + "France")}, DataError, "longer than the model's context"),
]


@pytest.mark.parametrize(("changed", "kind", "message"), BAD_INPUT)
def test_bad_input_costs_no_computation(changed, kind, message, monkeypatch):
    model = tiny.tiny_model("gptj")
    monkeypatch.setattr(model.module, "forward", lambda *_, **__: pytest.fail("something was computed"))
    call = {"requests": tiny.requests(), "layer": LAYER, "options": TargetOptions(), "templates": TEMPLATES, **changed}
    with pytest.raises(kind, match=message):
        find_target_vectors(model, call.pop("requests"), **call)


def test_a_block_whose_mlp_is_normed_takes_no_vector_behind_it():
    with pytest.raises(ConfigError, match="a norm follows the MLP"):
        find_target_vectors(
            tiny.tiny_model("gemma2"), tiny.requests(), layer=LAYER, site="resid", options=TargetOptions()
        )


def test_an_encoder_decoder_is_refused():
    with pytest.raises(ModelError, match="only in a decoder"):
        find_target_vectors(tiny.tiny_model("t5"), tiny.requests(), layer=LAYER, options=TargetOptions())


@pytest.mark.parametrize("extra", [{"log_odds": 3.0}, {"essence": "he is a"}, {"steps": 0}, {"serch": "adam"}])
def test_options_that_cannot_be(extra):
    with pytest.raises(ConfigError):
        TargetOptions.parse({"search": "gauss-newton", "stop_loss": 0.04, **extra}, owner="search")
