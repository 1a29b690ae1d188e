"""One call for many facts: rows checked, chunks of similar length, one search in each, one result."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from palimpsest.errors import ConfigError, ModelError
from palimpsest.locating.answer_chunks import chunk_id
from palimpsest.locating.contexts import CLEAN
from palimpsest.locating.subject_vectors import subject_rows, subject_vectors
from palimpsest.locating.target_vector.adam import search_adam
from palimpsest.locating.target_vector.chunk import Chunk, VectorPlace, prepare_chunk
from palimpsest.locating.target_vector.gauss_newton import search_gauss_newton
from palimpsest.locating.target_vector.log import Log, Stop
from palimpsest.locating.target_vector.options import DTYPES, TargetOptions
from palimpsest.locating.target_vector.rows import TargetRow, fact_rows, joined, rows_by_chunk, sharing_keys
from palimpsest.models import EditableModel, Point, cast_above, frozen_parameters, require_decoder
from palimpsest.requests import EditRequest
from palimpsest.stopwatch import Progress, silent

SHOWN = 5
SEARCHES = {"adam": search_adam, "gauss-newton": search_gauss_newton}


@dataclass(frozen=True)
class TargetVectors:
    """The result of a search.

    Arguments:
        ids: the facts' ids, in the order of the requests; with chunks, of each fact those of its chunks, and what is
            said of facts here is said of chunks.
        deltas: (facts, width), float32 (float64 for a model of that kind): what to add.
        initial: (facts, width): what flowed at the site at the subject's last token of the prompt alone.
        companions: further sites to the vectors, (facts, width), found jointly there.
        losses: id to what the search minimised, in each pass; facts that share a vector share its record.
        nlls: id to the negative log-likelihood per answer token, mean over contexts, in each pass; the last is that of
            `deltas`, unless a fact diverged or, with Gauss-Newton, an earlier pass was better.
        stopped: why each fact stopped.
        templates: the contexts that were used.
        is_whole_forward: whether the model could not go on from a cache, which costs time and changes nothing.
    """

    ids: tuple[str, ...]
    deltas: Tensor
    initial: Tensor
    companions: dict[str, Tensor]
    losses: dict[str, list[float]]
    nlls: dict[str, list[float]]
    stopped: tuple[Stop, ...]
    templates: tuple[str, ...]
    is_whole_forward: bool = False

    @property
    def targets(self) -> Tensor:
        """(facts, width): the vectors wanted at the site; v* in ROME, z in MEMIT."""
        return self.initial + self.deltas

    @property
    def passes(self) -> tuple[int, ...]:
        """Forward passes of each fact."""
        return tuple(len(self.losses[identity]) for identity in self.ids)

    def facts(self) -> dict[str, Any]:
        """Returns facts for a patch's manifest, JSON-ready."""
        return {
            "templates": list(self.templates),
            "passes": list(self.passes),
            "nll_before": [self.nlls[identity][0] for identity in self.ids],
            "nll_after": [self.nlls[identity][-1] for identity in self.ids],
            "delta_norms": self.deltas.norm(dim=-1).tolist(),
            "initial_norms": self.initial.norm(dim=-1).tolist(),
            "stopped": list(self.stopped),
        }

    def notes(self) -> list[str]:
        """Sentences a user should read."""
        notes = []
        for reason, what in (("steps", "did not reach their threshold"), ("diverged", "diverged")):
            ids = [identity for identity, why in zip(self.ids, self.stopped, strict=True) if why == reason]
            if ids:
                named = ", ".join(ids[:SHOWN]) + (" ..." if ids[SHOWN:] else "")
                notes.append(f"{len(ids)} of {len(self.ids)} target vectors {what}: edit {named}.")
        return notes


def find_target_vectors(
    model: EditableModel,
    requests: Sequence[EditRequest],
    *,
    layer: int,
    site: str = "mlp.down",
    companions: Sequence[str] = (),
    options: TargetOptions,
    templates: Sequence[str] = CLEAN,
    progress: Progress = silent,
) -> TargetVectors:
    """For every fact the vector that, added at the subject's last token of one layer, makes the model say the answer.

    The model is as it was afterwards. All facts are checked before anything is computed.

    Arguments:
        requests: facts with subjects; with chunks (`TargetOptions.chunk`) they need none.
        layer: the layer.
        site: where the vector is added and its reference lengths are taken: `mlp.down`, what the MLP writes (ROME's v),
            or `resid`, what the block hands on (MEMIT's z).
        companions: further sites of the layer with vectors of their own, found jointly (PMET: `attn.out`).
        templates: contexts, each ending with `{}` for the prompt; the first is `{}` alone.

    Raises `ModelError` for a layer out of range, an encoder-decoder, or a first pass without finite numbers;
    `ConfigError` for options that do not fit the model; `DataError` for a fact that cannot be used.
    """
    require_decoder(model)
    place = _place(model, layer, (site, *companions))
    last_block = _last_block(model, place, options)
    if options.chunk:
        return _found_by_chunk(model, requests, place, last_block, options, templates, progress)
    ids = tuple(request.id for request in requests)
    rows = fact_rows(model, requests, templates, options)
    is_joint = options.search == "gauss-newton" and options.joint
    sets = sharing_keys(rows, requests, options.joint_by) if is_joint else [[number] for number in range(len(rows))]
    rows = [joined([rows[number] for number in members]) if len(members) > 1 else rows[members[0]] for members in sets]
    search = _Search(model, place, last_block, options, templates, ids, progress)
    from_cache = None
    with frozen_parameters(model.module):
        for numbers in search.batches(rows):
            chunk = search.run([rows[number] for number in numbers], [sets[number] for number in numbers], from_cache)
            from_cache = not chunk.is_whole
    progress("targets", len(ids), len(ids))
    shared = [number for members in sets if len(members) > 1 for number in members]
    if shared:
        # One vector, added to what flows there behind each fact's own beginning.
        points = [Point(one, layer) for one in place.sites]
        flows = subject_vectors(model, subject_rows(model, [requests[number] for number in shared]), points)
        search.initial |= {
            number: torch.stack([flows[one][at, 0] for one in points]) for at, number in enumerate(shared)
        }
    return search.result(is_whole_forward=from_cache is False)


def _found_by_chunk(
    model: EditableModel,
    requests: Sequence[EditRequest],
    place: VectorPlace,
    last_block: int | None,
    options: TargetOptions,
    templates: Sequence[str],
    progress: Progress,
) -> TargetVectors:
    """A vector for every chunk of every answer, the first ones of all facts first; earlier ones stay in place.

    They are in the order of the facts and of their chunks, with `chunk_id`s.
    """
    rows = rows_by_chunk(model, requests, templates, options.chunk)
    starts = list(itertools.accumulate((len(own) for own in rows), initial=0))
    ids = tuple(chunk_id(request, at) for request, own in zip(requests, rows, strict=True) for at in range(len(own)))
    search = _Search(model, place, last_block, options, templates, ids, progress)
    from_cache = None if max(map(len, rows)) == 1 else True
    with frozen_parameters(model.module):
        _require_cache(model, rows, place, last_block)
        for at in range(max(map(len, rows))):
            facts = [fact for fact, own in enumerate(rows) if at < len(own)]
            now = [rows[fact][at] for fact in facts]
            for numbers in search.batches(now):
                members = [starts[facts[number]] + at for number in numbers]
                before = [[search.deltas[one - at + earlier] for earlier in range(at)] for one in members]
                chosen, earlier = [now[number] for number in numbers], list(map(torch.stack, before)) if at else ()
                search.run(chosen, [[one] for one in members], from_cache, earlier)
    progress("targets", len(ids), len(ids))
    return search.result(is_whole_forward=False)


def _require_cache(
    model: EditableModel, rows: Sequence[Sequence[Sequence[TargetRow]]], place: VectorPlace, last_block: int | None
) -> None:
    """Raises `ModelError` where vectors in place cannot be kept in a cache; found out at the longest text."""
    longest = max((own[-1] for own in rows), key=lambda own: len(own[0].ids))
    if longest[0].earlier:
        probe = prepare_chunk(
            model, [longest], place, last_block=last_block, forward_batch_size=len(longest), from_cache=None
        )
        if probe.is_whole:
            raise ModelError(
                "This model cannot go on from cached keys and values, which hold the vectors of the chunks before.",
                expected="a model that gives the same logits from a cache as from a whole pass",
                found=f"family {model.sites.architecture.name!r}, which does not",
                where="option targets.chunk",
                remedy="set targets.chunk = 0, or take a method that trains weights, such as ft",
            )


@dataclass
class _Search:
    """A search of many vectors, some at a time: what all of it shares, and what was found, by number of the vector.

    Arguments:
        ids: of the vectors.
        deltas: (sites, width) each.
        initial: (sites, width) each.
    """

    model: EditableModel
    place: VectorPlace
    last_block: int | None
    options: TargetOptions
    templates: Sequence[str]
    ids: tuple[str, ...]
    progress: Progress
    deltas: dict[int, Tensor] = field(default_factory=dict)
    initial: dict[int, Tensor] = field(default_factory=dict)
    losses: dict[int, list[float]] = field(default_factory=dict)
    nlls: dict[int, list[float]] = field(default_factory=dict)
    stopped: dict[int, Stop] = field(default_factory=dict)

    def batches(self, rows: Sequence[Sequence[TargetRow]]) -> Iterator[list[int]]:
        """Numbers of rows, those with suffixes of like length together, so that little padding is computed."""
        size = max(1, self.options.forward_batch_size // len(self.templates))
        order = sorted(range(len(rows)), key=lambda fact: (-rows[fact][0].suffix_length, -len(rows[fact][0].ids), fact))
        for start in range(0, len(order), size):
            yield order[start : start + size]

    def run(
        self,
        rows: Sequence[Sequence[TargetRow]],
        sets: Sequence[Sequence[int]],
        from_cache: bool | None,
        earlier: Sequence[Tensor] = (),
    ) -> Chunk:
        """Searches one vector for each of the rows and keeps it under every number of its set.

        Arguments:
            from_cache: see `prepare_chunk`.
            earlier: (chunks before, sites, width) for each of the rows: vectors that are in place.
        """
        self.progress("targets", len(self.deltas), len(self.ids))
        chunk = prepare_chunk(
            self.model,
            rows,
            self.place,
            last_block=self.last_block,
            forward_batch_size=self.options.forward_batch_size,
            from_cache=from_cache,
            earlier=earlier,
        )
        log = Log([self.ids[members[0]] for members in sets], chunk.initial.device)
        dtype = DTYPES.get(self.options.compute_dtype)
        with cast_above(self.model.sites, self.model.weights, self.place.entry, dtype):
            deltas = SEARCHES[self.options.search](chunk if dtype is None else chunk.cast(dtype), self.options, log)
        for index, members in enumerate(sets):
            self.deltas |= dict.fromkeys(members, deltas[index])
            self.initial |= dict.fromkeys(members, chunk.initial[index])
            self.losses |= dict.fromkeys(members, log.losses[index])
            self.nlls |= dict.fromkeys(members, log.nlls[index])
            self.stopped |= dict.fromkeys(members, log.stopped[index])
        return chunk

    def result(self, *, is_whole_forward: bool) -> TargetVectors:
        """All of the vectors, in their order."""
        order = range(len(self.ids))
        deltas = torch.stack([self.deltas[number] for number in order])
        return TargetVectors(
            ids=self.ids,
            deltas=deltas[:, 0],
            initial=torch.stack([self.initial[number][0] for number in order]),
            companions={site: deltas[:, at] for at, site in enumerate(self.place.sites) if at},
            losses={self.ids[number]: self.losses[number] for number in order},
            nlls={self.ids[number]: self.nlls[number] for number in order},
            stopped=tuple(self.stopped[number] for number in order),
            templates=tuple(self.templates),
            is_whole_forward=is_whole_forward,
        )


def _place(model: EditableModel, layer: int, sites: tuple[str, ...]) -> VectorPlace:
    """Where vectors are added. Raises for a site or layer that there is not, and for one that no MLP can write to."""
    for site in sites:
        model.sites.module(site, layer)
    writes_residual = model.sites.architecture.mlp_writes_residual
    if "resid" in sites and not writes_residual:
        raise ConfigError(
            "In this model a norm follows the MLP, whose weights cannot add a given vector to the block's output.",
            expected="the site mlp.down",
            found="the site resid",
            where=f"family {model.sites.architecture.name!r}",
            remedy="search at mlp.down, what the MLP writes before that norm",
        )
    return VectorPlace(layer, sites, writes_residual)


def _last_block(model: EditableModel, place: VectorPlace, options: TargetOptions) -> int | None:
    chosen = options.loss_layer
    if chosen is not None and not place.layer <= chosen < model.num_layers:
        raise ModelError(
            "The loss cannot be read at this layer.",
            expected=f"from the edited layer {place.layer} to {model.num_layers - 1}",
            found=str(chosen),
            where="option loss_layer",
        )
    return chosen
