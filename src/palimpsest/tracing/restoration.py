"""What a model says when a corrupted subject gets some of its clean states back: the one forward path of every trace.

Rows of a batch are (restoration, sample of the noise). A restoration changes nothing below its first layer and nothing
in front of the subject, so its rows begin there, with the corrupted run's own states.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from palimpsest.models import EditableModel, Intervention, Point, Suffix, captured, intervened, prepare_suffix


@dataclass(frozen=True)
class Corruption:
    """A prompt whose subject is disturbed.

    Arguments:
        ids: the prompt's tokens.
        subject: half-open span of the subject's tokens.
        answer_id: the token whose probability after the prompt is looked at.
        noise: (samples, subject tokens, width), added to the subject's embeddings.
    """

    ids: tuple[int, ...]
    subject: tuple[int, int]
    answer_id: int
    noise: Tensor


@dataclass(frozen=True)
class Restoration:
    """A site's output in some layers at one token, restored to its value in the clean run."""

    site: str
    layers: tuple[int, ...]
    token: int

    @property
    def points(self) -> list[Point]:
        return [Point(self.site, layer) for layer in self.layers]


@dataclass(frozen=True)
class Probabilities:
    """Probabilities of the answer's token; those of disturbed runs are means over the samples of the noise.

    Arguments:
        clean: in the undisturbed run.
        corrupted: with the noise.
        restored: with the noise and one restoration, in their order.
        is_first: whether the answer's token is the most probable one of the undisturbed run.
    """

    clean: float
    corrupted: float
    restored: tuple[float, ...]
    is_first: bool


@torch.no_grad()
def restored_probabilities(
    model: EditableModel,
    corruption: Corruption,
    restorations: Sequence[Restoration],
    *,
    forward_batch_size: int,
    advance: Callable[[int], None] = lambda done: None,
) -> Probabilities:
    """The answer's probability in the clean run, the corrupted one, and after every restoration.

    Arguments:
        restorations: at least one; none in front of the subject, where nothing is corrupted.
        forward_batch_size: rows of one forward pass at most, but never less than the samples of one restoration.
        advance: called with the number of restorations done so far.
    """
    samples, answer = len(corruption.noise), corruption.answer_id
    points = sorted({point for one in restorations for point in one.points}, key=repr)
    from_subject, _ = prepare_suffix(model, [corruption.ids], [corruption.subject[0]], 0)
    with captured(model.sites, points) as states:
        clean = model.forward(model.batch([corruption.ids]), **model.last_logits_only).logits[0, -1].float().softmax(-1)
    goes_on = from_subject.prefix is not None
    corrupted = _answer_probabilities(_corrupted(model, corruption, 0, from_cache=goes_on), answer)

    found: dict[int, float] = {}
    for layer, indices in _by_first_layer(restorations):
        suffix = _corrupted(model, corruption, layer, from_cache=goes_on)
        size = max(1, forward_batch_size // samples)
        for chunk in (indices[start : start + size] for start in range(0, len(indices), size)):
            rows = suffix.select(torch.arange(samples, device=model.device).repeat(len(chunk)))
            changes = _put_back(rows, states, [restorations[index] for index in chunk], samples)
            with intervened(model.sites, changes):
                values = _answer_probabilities(rows, answer)
            found |= dict(zip(chunk, values.view(len(chunk), samples).mean(-1).tolist(), strict=True))
            advance(len(found))
    return Probabilities(
        clean=float(clean[answer]),
        corrupted=float(corrupted.mean()),
        restored=tuple(found[index] for index in range(len(restorations))),
        is_first=int(clean.argmax()) == answer,
    )


def _corrupted(model: EditableModel, corruption: Corruption, layer: int, *, from_cache: bool) -> Suffix:
    """The corrupted run, one row a sample of the noise, to be repeated from a layer and the subject on."""
    start, end = corruption.subject

    def disturb(embedded: Tensor) -> Tensor:
        disturbed = embedded.clone()
        disturbed[:, start:end] += corruption.noise.to(embedded)
        return disturbed

    samples = len(corruption.noise)
    with intervened(model.sites, {Point("embed"): disturb}):
        return prepare_suffix(model, [corruption.ids] * samples, [start] * samples, layer, from_cache=from_cache)[0]


def _answer_probabilities(rows: Suffix, answer: int) -> Tensor:
    """(rows,), the probability of the answer's token after the prompt."""
    logits = rows.logits(torch.arange(len(rows.lengths), device=rows.lengths.device), rows.lengths - 1)
    return logits.float().softmax(-1)[:, answer]


def _put_back(
    rows: Suffix, states: Mapping[Point, Tensor], chunk: Sequence[Restoration], samples: int
) -> dict[Point, Intervention]:
    """For every point of a chunk the change that writes the clean states into the rows that restore it."""
    places: dict[Point, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for index, one in enumerate(chunk):
        for point in one.points:
            places[point][0].extend(range(index * samples, (index + 1) * samples))
            places[point][1].extend([one.token] * samples)
    skipped = int((rows.columns - rows.first_columns)[0])

    def change(point: Point) -> Intervention:
        at, tokens = places[point]

        def put(tensor: Tensor) -> Tensor:
            restored = tensor.clone()
            restored[at, [token - skipped for token in tokens]] = states[point][0, tokens]
            return restored

        return put

    return {point: change(point) for point in places}


def _by_first_layer(restorations: Sequence[Restoration]) -> Iterator[tuple[int, list[int]]]:
    """Layers that restorations begin in, with the indices of these."""
    firsts = [min(one.layers) for one in restorations]
    for layer, group in groupby(sorted(range(len(firsts)), key=firsts.__getitem__), firsts.__getitem__):
        yield layer, list(group)
