"""Finds the subject of a weight change: which texts it responds to most, and which words it writes.

An edit of a matrix W by dW acts on a text by dW k, where k is what the matrix reads at the text's last token. So of all
words that the model knows, those it was made for stand out by |dW k| / |W k|. What dW writes there, put through the
rest of the model, is what it makes the model say. Both can be read off a rank-one edit (Youssef et al., Tracing and
Reversing Edits in LLMs, arXiv:2505.20819), and in the same way off other changes of matrices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from palimpsest.inspecting.changes import leading, places_of
from palimpsest.locating import SubjectRows, subject_vectors
from palimpsest.models import EditableModel, Point
from palimpsest.models.sites import is_transposed, weight_as_out_in
from palimpsest.patches import Delta

_LEAD = "It is about "
_SHORTEST = 2
_OUTSIDE = 1e-12


@dataclass(frozen=True)
class Suspect:
    """A text that the changes may be about.

    Arguments:
        text: a word of the vocabulary, or a candidate that was given.
        drive: root of the summed squares, over the changed matrices, of |dW k| / |W k|.
        times: that over the median of all candidates.
    """

    text: str
    drive: float
    times: float


@dataclass(frozen=True)
class Direction:
    """A singular direction of a change.

    Arguments:
        name: the parameter.
        value: the singular value.
        reads: texts whose keys lie furthest along the direction that is read.
        writes: tokens whose logits rise most by what is written, turned as it is for the first of these texts.
    """

    name: str
    value: float
    reads: tuple[str, ...]
    writes: tuple[str, ...]


def candidates_from(model: EditableModel, most: int) -> list[str]:
    """Words of the vocabulary, as many, the most frequent first where the tokenizer orders them so."""
    special, found = set(model.tokenizer.all_special_ids), dict[str, None]()
    for token in range(len(model.tokenizer)):
        if len(found) == most:
            break
        if token in special:
            continue
        text = model.tokenizer.decode([token]).strip()
        if len(text) >= _SHORTEST and any(letter.isalpha() for letter in text) and text.isprintable():
            found[text] = None
    return list(found)


class CandidateKeys:
    """The inputs of matrices at the last tokens of candidate texts, matrix by matrix.

    Arguments:
        model: without the changes.
        texts: candidates.
    """

    def __init__(self, model: EditableModel, texts: Sequence[str]) -> None:
        self.model, self.texts = model, list(texts)
        # At the very first token many models keep a vector that says nothing of it.
        rows = [model.encode(f"{_LEAD}{text}").prompt_ids for text in texts]
        distinct = {row: number for number, row in enumerate(dict.fromkeys(rows))}
        self._rows = SubjectRows(tuple(distinct), torch.tensor([[distinct[row]] for row in rows]))

        self._read: dict[Point, Tensor] = {}

    def at(self, points: Sequence[Point]) -> dict[Point, Tensor]:
        """By point (texts, in), float32; each point is read once."""
        missing = [point for point in dict.fromkeys(points) if point not in self._read]
        if missing:
            found = subject_vectors(self.model, self._rows, missing, forward_batch_size=512)
            self._read |= {point: vectors[:, 0].float() for point, vectors in found.items()}
        return {point: self._read[point] for point in points}


def linear_changes(base: EditableModel, deltas: Mapping[str, Delta]) -> dict[str, tuple[Point, Tensor]]:
    """The changes of linear layers' weights: what each reads, and the change as (out, in)."""
    places, found = places_of(base), {}
    for name, delta in deltas.items():
        place = places.get(base.weights.canonical(name))
        if place is None or len(delta.shape) != 2 or base.sites.locate(place[0])[0] != "decoder":
            continue
        module = base.sites.module(*place)
        if base.sites.is_linear(module) and delta.shape == tuple(base.weights.shape(name)):
            dense = delta.dense().to(base.device)
            found[name] = (Point(place[0], place[1], "input"), dense.T if is_transposed(module) else dense)
    return found


@torch.no_grad()
def likely_subjects(
    base: EditableModel, deltas: Mapping[str, Delta], keys: CandidateKeys, *, most: int = 10
) -> list[Suspect]:
    """The candidates that the changes write most for, against what the matrices write for them."""
    changes = linear_changes(base, deltas)
    if not changes or not keys.texts:
        return []
    read = keys.at([point for point, _ in changes.values()])
    squared = torch.zeros(len(keys.texts), device=base.device)
    for point, delta in changes.values():
        weight = weight_as_out_in(base.sites.module(point.site, point.layer)).float()
        vectors = read[point].to(weight.device)
        wrote = (vectors @ weight.T).square().sum(1).clamp(min=_OUTSIDE)
        squared += ((vectors @ delta.float().T).square().sum(1) / wrote).to(squared)
    drives = squared.sqrt()
    median = max(float(drives.median()), _OUTSIDE)
    order = drives.argsort(descending=True)[:most].tolist()
    return [Suspect(keys.texts[one], float(drives[one]), float(drives[one]) / median) for one in order]


@torch.no_grad()
def strongest_directions(
    base: EditableModel, deltas: Mapping[str, Delta], keys: CandidateKeys, *, most: int = 5, shown: int = 5
) -> list[Direction]:
    """The strongest singular directions of the changes that are written into the residual stream."""
    found = []
    for name, (point, delta) in linear_changes(base, deltas).items():
        if delta.shape[0] != base.sites.d_model:
            continue
        vectors = keys.at([point])[point] if keys.texts else None
        left, values, right = leading(delta.float(), most)
        for written, value, read in zip(left.T, values.tolist(), right.T, strict=True):
            turned, reads = written, tuple[str, ...]()
            if vectors is not None:
                along = (vectors / vectors.norm(dim=1, keepdim=True).clamp(min=_OUTSIDE)) @ read.to(vectors)
                first = int(along.abs().argmax())
                sign = 1.0 if float(along[first]) >= 0 else -1.0
                turned = sign * written
                reads = tuple(keys.texts[one] for one in (sign * along).argsort(descending=True)[:shown].tolist())
            found.append(Direction(name, value, reads, _words(base, turned, shown)))
    return sorted(found, key=lambda one: one.value, reverse=True)[:most]


def _words(model: EditableModel, written: Tensor, shown: int) -> tuple[str, ...]:
    """Tokens that the head, behind the final norm's scale, reads most in a vector of the residual stream."""
    head = model.sites.module("unembed")
    dtype = next(head.parameters()).dtype
    vector = written.to(next(head.parameters()).device, dtype)[None]
    if model.sites.architecture.stacks["decoder"].final_norm is not None:
        norm = model.sites.module("final_norm")
        # A norm scales whatever its input's length; a bias is in both of these.
        vector = (norm(vector) - norm(-vector)) / 2
    try:
        logits = (head(vector) - head(torch.zeros_like(vector)))[0].float()
    except RuntimeError:
        # Some heads read another width, behind a projection of their own.
        return ()
    return tuple(model.tokenizer.decode([one]).strip() for one in logits.argsort(descending=True)[:shown].tolist())
