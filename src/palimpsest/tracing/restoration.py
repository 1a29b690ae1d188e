"""What a model says when a corrupted subject gets some of its clean states back: the one forward path of every trace.

Rows of a batch are (restoration, sample of the noise). A restoration changes nothing below its first layer, so its rows
begin there, with the corrupted run's own states.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.models.architecture import Sites
from palimpsest.models.editable import EditableModel
from palimpsest.models.hooks import Change, Point, captured, intervened

EMBEDDING = Point("embed")


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
    """What a site writes in some layers at one token, put back to what it was in the clean run."""

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
        forward_batch_size: rows of one forward pass at most, but never less than the samples of one restoration.
        advance: called with the number of restorations done so far.
    """
    samples = len(corruption.noise)
    points = sorted({point for one in restorations for point in one.points}, key=repr)
    with captured(model.sites, points) as states:
        logits = _last_logits(model, corruption.ids, rows=1)
    clean, is_first = _probability(logits, corruption.answer_id), int(logits[0].argmax()) == corruption.answer_id
    starts = {min(one.layers) for one in restorations}
    entries = [Point("resid", layer, "input") for layer in sorted(starts)]
    with (
        intervened(model.sites, {EMBEDDING: _disturb(corruption)}),
        captured(model.sites, entries) as corrupted,
        _kinds_of_outputs(model.sites) as kinds,
    ):
        logits = _last_logits(model, corruption.ids, rows=samples)
    below = _probability(logits, corruption.answer_id)

    found: dict[int, float] = {}
    size = max(1, forward_batch_size // samples)
    for start, chunk in _by_first_layer(restorations, size):
        entry = Point("resid", start, "input")
        changes = {entry: _replace_by(corrupted[entry].repeat(len(chunk), 1, 1))}
        changes |= _put_back(states, [restorations[index] for index in chunk], samples)
        with _skipped(model.sites, start, kinds), intervened(model.sites, changes):
            logits = _last_logits(model, corruption.ids, rows=len(chunk) * samples)
        picked = logits.softmax(-1)[:, corruption.answer_id].view(len(chunk), samples).mean(-1).tolist()
        found |= dict(zip(chunk, picked, strict=True))
        advance(len(found))
    return Probabilities(clean, below, tuple(found[index] for index in range(len(restorations))), is_first)


def _last_logits(model: EditableModel, ids: Sequence[int], *, rows: int) -> Tensor:
    """Logits after the prompt, (rows, vocabulary) in float32, of equal rows; without padding the last column is it."""
    batch = model.batch([ids] * rows)
    logits: Tensor = model.forward(batch, use_cache=False, **model.last_logits_only).logits[:, -1]
    return logits.float()


def _probability(logits: Tensor, token: int) -> float:
    return float(logits.softmax(-1)[:, token].mean())


def _disturb(corruption: Corruption) -> Change:
    start, end = corruption.subject

    def change(embedded: Tensor) -> Tensor:
        disturbed = embedded.clone()
        disturbed[:, start:end] += corruption.noise.to(embedded)
        return disturbed

    return change


def _replace_by(states: Tensor) -> Change:
    return lambda _tensor: states


def _put_back(states: Mapping[Point, Tensor], chunk: Sequence[Restoration], samples: int) -> dict[Point, Change]:
    """For every point of a chunk the change that writes the clean states into the rows that restore it."""
    places: dict[Point, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for index, one in enumerate(chunk):
        for point in one.points:
            rows, columns = places[point]
            rows += range(index * samples, (index + 1) * samples)
            columns += [one.token] * samples

    def change(point: Point) -> Change:
        rows, columns = places[point]

        def put(tensor: Tensor) -> Tensor:
            restored = tensor.clone()
            restored[rows, columns] = states[point][0, columns]
            return restored

        return put

    return {point: change(point) for point in places}


def _by_first_layer(restorations: Sequence[Restoration], size: int) -> Iterator[tuple[int, list[int]]]:
    """Indices of restorations that begin in one layer, at most `size` at a time, with that layer."""
    firsts = [min(one.layers) for one in restorations]
    for start, group in groupby(
        sorted(range(len(firsts)), key=lambda index: (firsts[index], index)), firsts.__getitem__
    ):
        indices = list(group)
        for begin in range(0, len(indices), size):
            yield start, indices[begin : begin + size]


@contextmanager
def _kinds_of_outputs(sites: Sites) -> Iterator[list[bool]]:
    """Inside the block a forward pass notes for every layer whether its block returns a tuple."""
    kinds = [False] * sites.num_layers
    with ExitStack() as stack:
        for layer in range(sites.num_layers):

            def note(_module: nn.Module, _args: Any, output: Any, *, layer: int = layer) -> None:
                kinds[layer] = isinstance(output, tuple)

            stack.callback(sites.block(layer).register_forward_hook(note).remove)
        yield kinds


@contextmanager
def _skipped(sites: Sites, below: int, kinds: Sequence[bool]) -> Iterator[None]:
    """Inside the block the layers below one hand on what they get; attention masks and positions stay the library's."""
    with ExitStack() as stack:
        for layer in range(below):

            def hand_on(hidden_states: Tensor, *_args: Any, is_tuple: bool = kinds[layer], **_kwargs: Any) -> Any:
                return (hidden_states,) if is_tuple else hidden_states

            block = sites.block(layer)
            former = vars(block).get("forward")
            stack.callback(_restore_forward, block, former)
            block.forward = hand_on
        yield


def _restore_forward(block: nn.Module, former: Any) -> None:
    if former is None:
        del block.forward
    else:
        block.forward = former
