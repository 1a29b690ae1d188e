"""The state of a sequence of edits with UltraEdit: means and deviations of the gradient factors seen so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from palimpsest.errors import DataError
from palimpsest.methods.base import MethodState
from palimpsest.methods.states import foreign_state
from palimpsest.models import EditableModel, Encoded
from palimpsest.models.sites import features, weight_as_out_in
from palimpsest.solve import EarlierKeys
from palimpsest.statistics import RunningMoments
from palimpsest.training import WeightPlace, gradient_factors

Rows = dict[str, tuple[Tensor, Tensor]]
"""By weight, what it read (n, in) and the loss's gradients at what it wrote (n, out), token by token."""


@dataclass(frozen=True, eq=False)
class Group:
    """Statistics of the factors of one group of weights.

    Arguments:
        inputs: of what the weights read.
        gradients: of the loss's gradients at what they write.
    """

    inputs: RunningMoments
    gradients: RunningMoments


@dataclass(frozen=True, eq=False)
class RunningFactors(MethodState):
    """Statistics of every group of weights, how long what each weight writes is, and the keys of the edits so far.

    Arguments:
        groups: by name; see `group_names`.
        lengths: by weight, the root mean square length of what it wrote at the first places seen.
        keys: by weight, what it read at the edited places, where earlier edits are asked to stay; else empty.
    """

    groups: dict[str, Group]
    lengths: dict[str, float]
    keys: dict[str, EarlierKeys]

    def tensors(self) -> dict[str, Tensor]:
        """See `MethodState.tensors`."""
        found = {f"{weight}|length": torch.tensor(length).double() for weight, length in self.lengths.items()}
        for name, group in self.groups.items():
            for side, moments in (("inputs", group.inputs), ("gradients", group.gradients)):
                found |= {f"{name}|{side}|{what}": one for what, one in moments.tensors().items()}
        for weight, keys in self.keys.items():
            found |= {f"{weight}|keys|{what}": one for what, one in keys.tensors().items()}
        return found

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> RunningFactors:
        """See `MethodState.from_tensors`."""
        tables: dict[tuple[str, str], dict[str, Tensor]] = {}
        lengths = {}
        for name, tensor in tensors.items():
            owner, *rest = name.split("|")
            if rest == ["length"]:
                lengths[owner] = float(tensor)
            else:
                side, what = rest
                tables.setdefault((owner, side), {})[what] = tensor
        groups = {
            owner: Group(*(RunningMoments.from_tensors(tables[owner, side]) for side in ("inputs", "gradients")))
            for owner, side in tables
            if side == "inputs"
        }
        keys = {owner: EarlierKeys.from_tensors(table) for (owner, side), table in tables.items() if side == "keys"}
        return cls(groups, lengths, keys)


def group_names(model: EditableModel, where: Sequence[WeightPlace], *, by_shape: bool) -> dict[str, str]:
    """Weight to the name of its group: its own, or its shape's."""
    shapes = {place.name: features(model.sites.module(place.site, place.layer)) for place in where}
    return {name: f"{out}x{width}" if by_shape else name for name, (out, width) in shapes.items()}


def begun(
    model: EditableModel, where: Sequence[WeightPlace], groups: Mapping[str, str], *, with_products: bool
) -> RunningFactors:
    """The state before anything was seen."""
    empty = {}
    for place in where:
        out, width = features(model.sites.module(place.site, place.layer))
        empty[groups[place.name]] = Group(
            RunningMoments.none(width).to(model.device),
            RunningMoments.none(out, with_products=with_products).to(model.device),
        )
    return RunningFactors(empty, {}, {})


def continued(
    state: MethodState | None, fresh: RunningFactors, where: Sequence[WeightPlace], device: torch.device
) -> RunningFactors | None:
    """The state that an edit before returned. Raises `ConfigError` for another method's, or of other weights.

    Arguments:
        fresh: what a sequence with these options begins with.
    """
    if state is None:
        return None
    wanted = _form(fresh), {place.name for place in where}
    if not isinstance(state, RunningFactors) or (_form(state), set(state.lengths)) != wanted:
        found = type(state).__name__
        if isinstance(state, RunningFactors):
            found = f"{', '.join(sorted(state.lengths))}, in groups of {_form(state)}"
        expected = f"a state of ultraedit for {', '.join(sorted(wanted[1]))}, in groups of {wanted[0]}"
        raise foreign_state(expected, found, remedy="give the same sites, layers and normaliser, or begin anew")
    groups = {n: Group(g.inputs.to(device), g.gradients.to(device)) for n, g in state.groups.items()}
    return RunningFactors(groups, state.lengths, state.keys)


def met(
    model: EditableModel, where: Sequence[WeightPlace], groups: Mapping[str, str], state: RunningFactors, rows: Rows
) -> RunningFactors:
    """The state once it has seen some rows more; in which order it sees them makes no difference."""
    found, lengths = dict(state.groups), dict(state.lengths)
    for place in where:
        inputs, gradients = rows[place.name]
        before = found[groups[place.name]]
        found[groups[place.name]] = Group(before.inputs.joined(inputs), before.gradients.joined(gradients))
        if place.name not in lengths and len(inputs):
            weight = weight_as_out_in(model.sites.module(place.site, place.layer)).detach()
            lengths[place.name] = float((inputs @ weight.to(inputs).T).square().sum(dim=1).mean().sqrt())
    return RunningFactors(found, lengths, state.keys)


def require_spread(state: RunningFactors) -> None:
    """Raises `DataError` if there is no deviation yet."""
    count = min(group.gradients.count for group in state.groups.values())
    if count < 2:
        raise DataError(
            "There are too few tokens to normalise by.",
            expected="two answer tokens at least, or a warm-up",
            found=f"{count} token(s) so far",
            where="option warm_up",
            remedy="leave warm_up out, or edit more facts in the first call",
        )


def with_keys_of(state: RunningFactors, rows: Rows) -> RunningFactors:
    """The state with what the matrices read at the places edited now."""
    keys = {}
    for name, (read, _) in rows.items():
        width = read.shape[1]
        before = state.keys.get(name) or EarlierKeys.none(width)
        keys[name] = before.joined(read.cpu(), torch.zeros(width, 0))
    return replace(state, keys=keys)


def factor_rows(
    model: EditableModel, encoded: Sequence[Encoded], where: Sequence[WeightPlace], *, forward_batch_size: int
) -> Rows:
    """The gradient factors in the places that predict an answer token; in an encoder, of every token that has a share.

    A fact's loss is the sum over its answer's tokens of -log p, so that a token's gradient does not depend on how many
    there are.
    """
    found: dict[str, list[tuple[Tensor, Tensor]]] = {place.name: [] for place in where}
    for start in range(0, len(encoded), forward_batch_size):
        chunk = encoded[start : start + forward_batch_size]
        factors = gradient_factors(model, chunk, where)
        rows, columns, _ = model.answer_places(chunk, model.batch(chunk))
        for place in where:
            one = factors[place.name]
            chosen = one.mask.clone()
            if model.sites.locate(place.site)[0] == "decoder":
                chosen[:] = False
                chosen[rows.to(chosen.device), columns.to(chosen.device)] = True
                chosen &= one.mask
            counts = torch.tensor([len(row.target_ids) for row in chunk], device=chosen.device)
            gradients = one.gradients * counts[:, None, None]
            found[place.name].append((one.inputs[chosen], gradients[chosen]))
    return {name: (torch.cat([h for h, _ in parts]), torch.cat([g for _, g in parts])) for name, parts in found.items()}


def _form(state: RunningFactors) -> dict[str, tuple[int, int, bool]]:
    """Per group the widths, and whether products are kept."""
    return {
        name: (len(one.inputs.mean), len(one.gradients.mean), one.gradients.products is not None)
        for name, one in state.groups.items()
    }
