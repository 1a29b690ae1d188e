"""Facts that are searched together: their rows, prepared so that a pass runs only what a vector can reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from palimpsest.locating.target_vector.rows import TargetRow
from palimpsest.models import EditableModel, Intervention, Point, Suffix, prepare_suffix

# A lot of rows is cut where suffixes get shorter than this share of its longest, but not below a fair size for a pass.
LIKE = 0.8
WORTH_A_PASS = 16


@dataclass(frozen=True)
class VectorPlace:
    """Where a vector is added.

    Arguments:
        layer: the layer.
        sites: the sites there, one vector each; the first is the one that is asked for.
        is_residual: whether what is added at the sites is added to the residual stream as it is.
    """

    layer: int
    sites: tuple[str, ...]
    is_residual: bool

    @property
    def points(self) -> list[Point]:
        """The sites as points of the forward pass."""
        return [Point(site, self.layer) for site in self.sites]

    @property
    def stream(self) -> Point:
        """The output of the layer's block."""
        return Point("resid", self.layer)

    @property
    def is_behind_the_block(self) -> bool:
        """Whether the vector may as well be added to what the block hands on, so that the block need not be run."""
        return self.is_residual and self.sites in (("resid",), ("mlp.down",))

    @property
    def entry(self) -> int:
        """The first block that depends on the vectors."""
        return self.layer + 1 if self.is_behind_the_block else self.layer


@dataclass(frozen=True)
class RowGroup:
    """Rows of one pass.

    Arguments:
        place: where their vectors are added.
        suffix: the rows, prepared.
        facts: (rows,), number of each row's fact in the chunk.
        ranks: (rows,), number of the row among its fact's.
        rows: (places,), row of each place where a prediction counts.
        tokens: (places,), its token in the row.
        labels: (places,), the token wanted there, -1 for none.
    """

    place: VectorPlace
    suffix: Suffix
    facts: Tensor
    ranks: Tensor
    rows: Tensor
    tokens: Tensor
    labels: Tensor

    def logits(self, vectors: Tensor) -> Tensor:
        """Logits at the places, (places, vocabulary) in float32, with a vector added to each row.

        Arguments:
            vectors: (rows, sites, width).
        """
        suffix = self.suffix
        if self.place.is_behind_the_block:
            first = (suffix.entering[:, :1] + vectors).to(suffix.dtype)
            entering = torch.cat([first, suffix.entering[:, 1:].to(suffix.dtype)], dim=1)
            return suffix.logits(self.rows, self.tokens, entering).to(vectors)
        changes = {
            point: _adding(vectors[:, index], suffix.first_columns) for index, point in enumerate(self.place.points)
        }
        with suffix.model.intervene(changes):
            return suffix.logits(self.rows, self.tokens).to(vectors)

    def per_row(self, values: Tensor) -> Tensor:
        """Sums over each row's places: (places,) to (rows,)."""
        return values.new_zeros(len(self.facts)).index_add(0, self.rows, values)

    def lengths(self) -> Tensor:
        """(rows,), number of places of each row."""
        return torch.bincount(self.rows, minlength=len(self.facts))

    def select(self, keep: Tensor) -> RowGroup:
        """The group with only the rows where `keep`, (rows,), holds."""
        kept, stays = keep.nonzero()[:, 0], keep[self.rows]
        renumbered = keep.cumsum(0) - 1
        return replace(
            self,
            suffix=self.suffix.select(kept),
            facts=self.facts[kept],
            ranks=self.ranks[kept],
            rows=renumbered[self.rows[stays]],
            tokens=self.tokens[stays],
            labels=self.labels[stays],
        )


@dataclass
class Chunk:
    """The groups of some facts, and the vectors found at the sites before any change.

    Arguments:
        rewriting: the groups of prompts with their answers.
        essence: the groups of essence prompts, without labels.
        initial: (facts, sites, width), in float32 or better.
        scale: (facts, sites), the length of what a vector is added to, by which steps are measured: of the residual
            stream, or of the site's own vector where a norm follows it.
    """

    rewriting: list[RowGroup]
    essence: list[RowGroup]
    initial: Tensor
    scale: Tensor

    @property
    def num_facts(self) -> int:
        return len(self.initial)

    def groups(self) -> Iterator[RowGroup]:
        yield from self.rewriting
        yield from self.essence

    def num_rows(self) -> Tensor:
        """(facts,), how many rows with answers each fact has."""
        return sum(
            (torch.bincount(group.facts, minlength=self.num_facts) for group in self.rewriting),
            start=torch.zeros(self.num_facts, dtype=torch.long, device=self.initial.device),
        )

    @property
    def is_whole(self) -> bool:
        """Whether the model cannot go on from a cache, so that every pass is a whole one."""
        return any(group.suffix.prefix is None for group in self.groups())

    def cast(self, dtype: torch.dtype) -> Chunk:
        """The chunk for a model whose upper weights have been cast."""
        return self._each(lambda group: replace(group, suffix=group.suffix.to(dtype)))

    def narrowed(self, active: Tensor) -> Chunk:
        """The chunk with only the rows of the active facts, (facts,) of booleans; facts keep their numbers."""

        def narrow(group: RowGroup) -> RowGroup | None:
            keep = active[group.facts]
            if keep.all():
                return group
            return group.select(keep) if keep.any() else None

        return self._each(narrow)

    def _each(self, change: Callable[[RowGroup], RowGroup | None]) -> Chunk:
        def changed(groups: list[RowGroup]) -> list[RowGroup]:
            return [group for group in map(change, groups) if group is not None]

        return replace(self, rewriting=changed(self.rewriting), essence=changed(self.essence))


def prepare_chunk(
    model: EditableModel,
    facts: Sequence[Sequence[TargetRow]],
    place: VectorPlace,
    *,
    last_block: int | None,
    forward_batch_size: int,
    from_cache: bool | None,
    earlier: Sequence[Tensor] = (),
) -> Chunk:
    """One whole pass over all rows of some facts; see `models.suffix.prepare`.

    Arguments:
        facts: the rows of each fact; their own fact numbers are replaced by places in this list.
        place: where vectors are added.
        last_block: the block whose output goes to the head; the last one for None.
        forward_batch_size: rows in one pass.
        from_cache: as `prepare` takes it.
        earlier: of each fact, (n, sites, width), what is added at its rows' n `earlier` columns, now and in later
            passes; needs a model that goes on from a cache.
    """
    rows = [replace(row, fact=index) for index, own in enumerate(facts) for row in own]
    points = [*place.points, place.stream] if place.is_residual else place.points
    seen: dict[int, Tensor] = {}
    groups: dict[bool, list[RowGroup]] = {True: [], False: []}
    for has_labels in groups:
        some = [row for row in rows if (row.rank is not None) is has_labels]
        for part in _of_like_length(some, forward_batch_size):
            with model.intervene(_earlier_vectors(place, part, earlier)):
                suffix, found = prepare_suffix(
                    model,
                    [row.ids for row in part],
                    [row.column for row in part],
                    place.entry,
                    last_block=last_block,
                    points=points,
                    from_cache=from_cache,
                )
            from_cache = suffix.prefix is not None
            groups[has_labels].append(_group(place, suffix, part))
            vectors = torch.stack([found[point] for point in points], dim=1)
            seen |= {row.fact: vector for row, vector in zip(part, vectors, strict=True) if row.rank == 0}
    stacked = torch.stack([seen[index] for index in range(len(facts))])
    stacked = stacked.to(torch.promote_types(stacked.dtype, torch.float32))
    initial = stacked[:, : len(place.sites)]
    scale = (stacked[:, -1:] if place.is_residual else initial).norm(dim=-1).expand(initial.shape[:2])
    return Chunk(groups[True], groups[False], initial, scale)


def _of_like_length(rows: Sequence[TargetRow], most: int) -> Iterator[list[TargetRow]]:
    """Rows in lots of at most `most`, longest suffixes first, so that little padding is computed."""
    part: list[TargetRow] = []
    for row in sorted(rows, key=lambda row: (-row.suffix_length, -len(row.ids))):
        is_short = part and row.suffix_length < LIKE * part[0].suffix_length
        if len(part) == most or (is_short and len(part) >= WORTH_A_PASS):
            yield part
            part = []
        part.append(row)
    if part:
        yield part


def _group(place: VectorPlace, suffix: Suffix, rows: Sequence[TargetRow]) -> RowGroup:
    places = [(index, token) for index, row in enumerate(rows) for token in row.places]

    def tensor(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=suffix.entering.device)

    return RowGroup(
        place=place,
        suffix=suffix,
        facts=tensor([row.fact for row in rows]),
        ranks=tensor([row.rank or 0 for row in rows]),
        rows=tensor([row for row, _ in places]),
        tokens=tensor([token for _, token in places]),
        labels=tensor([label for row in rows for label in row.labels or [-1] * len(row.places)]),
    )


def _earlier_vectors(
    place: VectorPlace, rows: Sequence[TargetRow], earlier: Sequence[Tensor]
) -> dict[Point, Intervention]:
    """Returns the interventions that add earlier vectors to a batch of these rows; empty if there are none."""
    columns = [(index, column) for index, row in enumerate(rows) for column in row.earlier]
    if not earlier or not columns:
        return {}
    numbers, places = torch.tensor(columns).T
    vectors = torch.cat([earlier[row.fact] for row in rows])
    return {point: _adding(vectors[:, index], places, numbers) for index, point in enumerate(place.points)}


def _adding(vectors: Tensor, columns: Tensor, numbers: Tensor | None = None) -> Intervention:
    """Adds vectors, (n, width), at columns, (n,), of rows, (n,); of each row in turn where none are given."""
    columns = columns.to(vectors.device)
    rows = torch.arange(len(columns), device=columns.device) if numbers is None else numbers.to(columns.device)

    def change(hidden: Tensor) -> Tensor:
        return hidden.index_put((rows, columns), (hidden[rows, columns] + vectors).to(hidden.dtype))

    return change
