"""The batched search for target vectors against one fact at a time, through the whole model, written plainly."""

import math

import pytest
import torch

import tiny
from palimpsest import EditRequest
from palimpsest.models.hooks import Point
from palimpsest.models.tokens import subject_last_token
from palimpsest.optimise.target_vector import TargetOptions, find_target_vectors

TEMPLATES = ("{}", "It was written long ago. {}", "Rome. {}")
LAYER = 1


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
    column = subject_last_token(model.tokenizer, EditRequest(text, subject=subject, target_new="x"))

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
    """For each context the log-probabilities, (tokens,), of the answer's tokens, and whether each is the most probable."""
    for template in templates:
        text = template.replace("{}", request.prompt)
        logits, last, row, _ = naive_pass(model, text, request.subject, request.target_new, deltas)
        labels = torch.tensor(row.target_ids)
        places = last + torch.arange(len(labels))
        yield logits.log_softmax(-1)[places, labels], logits[places].argmax(-1) == labels


def at_subject(model, request, point):
    _, found = model.capture([request.prompt], [point])
    return found[point][0, subject_last_token(model.tokenizer, request)]


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


def naive_gauss_newton(model, request, point, options, templates):
    """One fact, one row after another: (best vector, negative log-likelihoods, how often the radius was halved)."""
    scale = at_subject(model, request, Point("resid", point.layer) if is_residual(model) else point).norm()
    delta = torch.zeros_like(at_subject(model, request, point), requires_grad=True)
    radius, last, best, nlls, halvings = options.max_step * scale, math.inf, None, [], 0
    for step in range(options.steps):
        rows = [log_probs.sum() for log_probs, _ in naive_answers(model, request, templates, {point: delta})]
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
    ("gptj", ("mlp.down", "attn.out"), {"relax_when_said": True, "steps": 30, "learning_rate": 1.0, "stop_loss": 0.05}),
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


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_adam_is_that_search_in_single_precision_too(family):
    model = tiny.tiny_model(family)
    options = TargetOptions(steps=4, learning_rate=0.2, stop_loss=0.0)
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
    options = TargetOptions(search="gauss-newton")
    found = find_target_vectors(model, tiny.requests(), layer=LAYER, options=options, templates=templates)
    for index, request in enumerate(tiny.requests()):
        delta, nlls, _ = naive_gauss_newton(model, request, Point("mlp.down", LAYER), options, templates)
        assert found.losses[request.id] == pytest.approx(nlls, rel=1e-4, abs=1e-5)
        assert (found.deltas[index] - delta).norm() <= 1e-4 * delta.norm()
