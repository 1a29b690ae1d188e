"""Which layers to edit: those up to a seventh of the depth, or those where a trace of facts has its peak.

In a trace the MLP's output at the subject's last token brings a corrupted fact back. The layer of the peak is for
methods that edit one layer; those that edit several take the layers that end there. Where nothing can be traced, a
depth stands in for the peak.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

import torch

from palimpsest.errors import ConfigError
from palimpsest.models import EditableModel, Point, captured
from palimpsest.requests import EditRequest
from palimpsest.stopwatch import Progress, silent
from palimpsest.tracing.causal import TraceOptions, default_window, window_around
from palimpsest.tracing.questions import TracedPrompt, draw_noise, embedding_deviation, known_questions
from palimpsest.tracing.restoration import Corruption, Probabilities, Restoration, restored_probabilities

MOST_FACTS = 12
"""Facts that are traced at most: the mean over a dozen settles the peak, and more would cost more than an edit."""
DEPTH = 0.14
"""Where layers are chosen by depth, and where nothing can be traced: what measured best on small pretrained models, see
docs/tracing.md. Published choices end at 0.18 (ROME on GPT-J, layer 5 of 28) to 0.35 of the depth (ROME on GPT-2 XL,
layer 17 of 48); presets have them."""
SMALLEST_EFFECT = 0.01
"""Probability that the best layer has to bring back on average; less is no peak. The paper finds 0.066 (GPT-2 XL)."""


def recommended_layers(
    model: EditableModel,
    requests: Sequence[EditRequest],
    how_many: int = 1,
    *,
    seed: int = 0,
    options: TraceOptions | None = None,
    progress: Progress = silent,
) -> tuple[list[int], dict[str, Any]]:
    """The layers to edit for facts like these, and a JSON-ready record of why.

    At most a dozen of the requests that the model knows are traced: windows of MLP outputs at the subject's last token
    alone. Layers whose MLP sees nothing but the token's own embedding do not count, neither as the peak nor inside a
    window.

    Arguments:
        requests: facts with subjects; see `questions.known_questions` for which of them are traced.
        how_many: layers wanted; they are consecutive and end at the peak.
        seed: seed of the noise.
        options: other choices for the trace; its seed is replaced by `seed`.

    Raises `ConfigError` when the model has fewer layers than wanted, and as `questions.question` does.
    """
    _require_layers(model, how_many)
    options = (options or TraceOptions()).model_copy(update={"seed": seed})
    known, _ = known_questions(model, requests, at_most=MOST_FACTS)
    first = first_mixing_layer(model)
    peak, why, traced = depth_layer(model.num_layers, first), "the model knows none of the facts", {}
    if known:
        traced = _trace_last_subject_tokens(model, known, first, options, progress)
        restored = traced["restored"]
        if max(restored) - traced["corrupted"] < SMALLEST_EFFECT:
            why = "no layer brings the answers back"
        else:
            peak, why = first + restored.index(max(restored)), ""
    above = f" from layer {first} on, the first whose MLP reads other tokens" if first else ""
    layers = layers_ending_at(peak, how_many, first, model.num_layers)
    return layers, {
        "layers": layers,
        "peak": peak,
        "rule": f"{DEPTH:g} of the depth, since {why}" if why else f"peak of the causal trace{above}",
        "first_layer": first,
        "facts_given": len(requests),
        "facts_traced": len(known),
        **traced,
    }


def layers_by_depth(
    model: EditableModel, how_many: int | None = None, *, most: int = 1
) -> tuple[list[int], dict[str, Any]]:
    """The layers that suit a model, whatever the facts, and a JSON-ready record of why.

    They end at a seventh of the depth, and not below the first layer whose MLP reads other tokens. One trace of one
    fact is noise on a deep model, where the windows make a plateau of many layers; see `recommended_layers` for traces
    of many.

    Arguments:
        how_many: layers wanted, reaching beyond that depth if there are too few below it.
        most: where nobody says how many: as many as there are up to that depth, but not more than this.

    Raises `ConfigError` when the model has fewer layers than wanted.
    """
    first = first_mixing_layer(model)
    peak = depth_layer(model.num_layers, first)
    how_many = how_many or min(most, peak - first + 1)
    _require_layers(model, how_many)
    layers = layers_ending_at(peak, how_many, first, model.num_layers)
    return layers, {"layers": layers, "peak": peak, "rule": f"{DEPTH:g} of the depth", "first_layer": first}


def layers_ending_at(peak: int, how_many: int, first: int, num_layers: int) -> list[int]:
    """Consecutive layers that end at a peak; if there are too few from `first` on, they reach beyond it.

    Only a model without that many layers from `first` on gives layers below it.
    """
    start = min(max(first, peak - how_many + 1), num_layers - how_many)
    return list(range(start, start + how_many))


def depth_layer(num_layers: int, first: int = 0) -> int:
    """The layer that stands in for a peak where nothing can be traced."""
    return max(first, int(DEPTH * num_layers))


def _require_layers(model: EditableModel, how_many: int) -> None:
    if not 1 <= how_many <= model.num_layers:
        raise ConfigError(
            "There are not that many layers.", expected=f"1 to {model.num_layers}", found=f"{how_many} layers wanted"
        )


@torch.no_grad()
def first_mixing_layer(model: EditableModel) -> int:
    """The first layer whose MLP reads something of other tokens; in blocks that run attention and MLP side by side, 1.

    Asked of the model, not of its family: two sequences that differ in their first token are run, and the inputs of the
    MLPs at the last token are compared. An edit of a layer below would be the same for every subject that ends alike.
    """
    for layer in range(model.num_layers):
        inputs = []
        for ids in ((3, 5, 7), (4, 5, 7)):
            # Nothing above the layer is computed: it is the first or the second in every family that there is.
            point = Point(model.sites.mlp_ends[0], layer, "input")
            with captured(model.sites, [point], stops=True) as found:
                model.forward(model.batch([ids]))
            inputs.append(found[point][0, -1])
        if not torch.equal(*inputs):
            return layer
    return 0


def _trace_last_subject_tokens(
    model: EditableModel, known: Sequence[TracedPrompt], first: int, options: TraceOptions, progress: Progress
) -> dict[str, Any]:
    """Means over the facts; `restored` has one probability for every layer from `first` on."""
    deviation = options.noise * (options.deviation or embedding_deviation(model, known))
    window = options.window or default_window(model.num_layers)
    written = model.sites.mlp_ends[1]
    found: list[Probabilities] = []
    for done, asked in enumerate(known):
        progress("tracing", done, len(known))
        noise = draw_noise(model, asked, deviation, samples=options.samples, seed=options.seed)
        restorations = [
            Restoration(written, window_around(layer, window, model.num_layers, first=first), asked.subject[1] - 1)
            for layer in range(first, model.num_layers)
        ]
        found.append(
            restored_probabilities(
                model,
                Corruption(asked.ids, asked.subject, asked.answer_id, noise),
                restorations,
                forward_batch_size=options.forward_batch_size,
            )
        )
    progress("tracing", len(known), len(known))
    return {
        "clean": mean(one.clean for one in found),
        "corrupted": mean(one.corrupted for one in found),
        "restored": [mean(values) for values in zip(*(one.restored for one in found), strict=True)],
        "window": window,
        "samples": options.samples,
        "noise": deviation,
        "seed": options.seed,
    }
