"""The batched search for target vectors against one fact at a time, through the whole model, written plainly."""

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


def naive_pass(model, text, subject, target, point, delta):
    """(logits, first answer place, ids, subject's column) of one text through the whole model, `delta` added."""
    encoded = model.encode(text, target) if target else model.encode(text)
    column = subject_last_token(model.tokenizer, EditRequest(text, subject=subject, target_new="x"))

    def add(hidden):
        spot = torch.zeros_like(hidden)
        spot[:, column] = 1
        return hidden + spot * delta

    ids = torch.tensor([encoded.ids])
    with model.intervene({point: add}):
        logits = model.module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    return logits, len(encoded.prompt_ids) - 1, encoded, column


def naive_adam(model, request, point, options):
    """ROME's search as its paper and code describe it: one fact, one row after another, torch's own Adam."""
    _, found = model.capture([request.prompt], [point])
    initial = found[point][0, subject_last_token(model.tokenizer, request)]
    # In units of |initial| / sqrt(width) a step of Adam is as long as the learning rate says, relative to |initial|.
    unit = initial.norm() / len(initial) ** 0.5 if options.learning_rate_unit == "relative" else 1.0
    scaled = torch.zeros_like(initial, requires_grad=True)
    optimizer = torch.optim.Adam([scaled], lr=options.learning_rate)
    losses, kept = [], None
    for step in range(options.steps):
        delta = scaled * unit
        terms = []
        for template in TEMPLATES:
            logits, first, row, _ = naive_pass(
                model, template.replace("{}", request.prompt), request.subject, request.target_new, point, delta
            )
            log_probs = logits.log_softmax(-1)
            terms.append(-sum(log_probs[first + i, t] for i, t in enumerate(row.target_ids)) / len(row.target_ids))
        nll = sum(terms) / len(terms)
        logits, last, _, column = naive_pass(model, f"{request.subject} is a", request.subject, None, point, delta)
        now = logits[column if options.kl_position == "subject" else last].log_softmax(-1)
        kept = now.detach() if kept is None else kept
        divergence = (now.exp() * (now - kept)).sum()
        loss = nll + options.kl_factor * divergence + options.weight_decay * delta.norm() / initial.norm() ** 2
        losses.append(loss.item())
        compared = loss if options.stop_on == "total" else nll
        if compared < options.stop_loss or step == options.steps - 1:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bound = options.clamp_norm_factor * initial.norm()
        with torch.no_grad():
            if scaled.norm() * unit > bound:
                scaled *= bound / (scaled.norm() * unit)
    return delta.detach(), initial, losses


@pytest.mark.parametrize(
    ("family", "site", "extra"),
    [
        ("gptj", "mlp.down", {}),
        ("gptj", "resid", {"clamp_norm_factor": 0.05}),
        ("gpt2", "mlp.down", {"kl_position": "last", "kl_factor": 1.0}),
        ("gpt2", "resid", {"learning_rate_unit": "relative", "learning_rate": 0.1, "stop_on": "likelihood"}),
        ("llama", "resid", {"learning_rate": 0.5}),
        ("gemma2", "mlp.down", {}),
        ("bloom", "resid", {"forward_batch_size": 2}),
        ("falcon-multi-head", "resid", {}),
        ("opt", "mlp.down", {"forward_batch_size": 5}),
    ],
)
def test_adam_is_the_one_at_a_time_search(family, site, extra):
    model = tiny.tiny_model(family, dtype=torch.float64)
    options = TargetOptions(**{"steps": 8, "learning_rate": 0.2, "weight_decay": 0.5, "stop_loss": 7.0, **extra})
    before, flags = state(model), [p.requires_grad for p in model.module.parameters()]
    found = find_target_vectors(model, tiny.requests(), layer=LAYER, site=site, options=options, templates=TEMPLATES)
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
    assert flags == [p.requires_grad for p in model.module.parameters()]
    assert not any(p.grad is not None for p in model.module.parameters())
    assert not found.is_whole_forward
    for index, request in enumerate(tiny.requests()):
        delta, initial, losses = naive_adam(model, request, Point(site, LAYER), options)
        assert found.losses[request.id] == pytest.approx(losses, rel=1e-6)
        assert torch.allclose(found.initial[index], initial, atol=1e-6)
        assert (found.deltas[index] - delta).norm() <= 1e-5 * delta.norm()
        assert torch.equal(found.targets[index], found.initial[index] + found.deltas[index])
    print(family, found.passes, [round(v[-1], 2) for v in found.losses.values()])
    assert len(set(found.passes)) > 1, "the facts stop after different numbers of passes"
    assert "reached" in found.stopped
