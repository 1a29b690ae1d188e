"""From a model to its verified sites: the row is looked up by model type, then proved by one forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.errors import ModelError, unknown_name
from palimpsest.models.families import FAMILIES, SITE_NAMES, Architecture, Part
from palimpsest.models.hooks import first_input, first_tensor
from palimpsest.models.linear import LINEAR_TYPES, cut_output, features, is_linear, is_quantised, qualified_name
from palimpsest.models.mixtures import EXPERT_FIELDS, MIXTURES
from palimpsest.models.variants import VARIANTS
from palimpsest.models.weights import quantised_weights
from palimpsest.registry import plugins

WEIGHT_SITES = tuple(name for name in SITE_NAMES if "." in name)
MATRICES = ("mlp.up", "mlp.gate", "mlp.down")


@dataclass(frozen=True)
class Sites:
    """An architecture bound to one model: every path has been found, and seen to carry what the row says.

    Arguments:
        architecture: the row.
        model: the module the paths start at.
        num_layers: number of blocks.
        d_model: width of the residual stream.
    """

    architecture: Architecture
    model: nn.Module
    num_layers: int
    d_model: int

    def module(self, site: str, layer: int | None = None) -> nn.Module:
        """The module of a site. `embed`, `final_norm` and `unembed` take no layer.

        Raises `ConfigError` for an unknown site, `ModelError` for a layer out of range.
        """
        row = self.architecture
        if site in ("embed", "final_norm", "unembed"):
            return self.model.get_submodule(getattr(row, site))
        part = self.part(site)
        if layer is None or not 0 <= layer < self.num_layers:
            raise ModelError(
                "A layer is out of range.",
                expected=f"0 to {self.num_layers - 1}",
                found=str(layer),
                where=f"site {site!r} of a model with {self.num_layers} layers",
            )
        return self.model.get_submodule(_join(row.blocks, str(layer), part.path))

    def part(self, site: str) -> Part:
        """Where a site lies inside a block.

        Raises `ConfigError` for an unknown one, `ModelError` for a matrix that a mixture of experts has many of.
        """
        if site not in self.architecture.sites:
            if self.architecture.is_mixture and site in MATRICES:
                raise _many_matrices(self, site)
            raise unknown_name("site", site, self.architecture.sites, where=f"family {self.architecture.name!r}")
        return self.architecture.sites[site]

    def block(self, layer: int) -> nn.Module:
        """A whole block."""
        return self.model.get_submodule(_join(self.architecture.blocks, str(layer)))

    def is_linear(self, module: nn.Module) -> bool:
        """Whether a module is a linear layer with a plain weight, by this family's types."""
        return is_linear(module, self.architecture.linear_types)

    def require_weight(self, site: str, layer: int) -> str:
        """The full name of a site's weight, of which a method wants to compute and change the numbers.

        Raises as `parameter_name` does, and `ModelError` for a weight that is quantised or shared with other sites.
        """
        name, module, part = self.parameter_name(site, layer), self.module(site, layer), self.part(site)
        if is_quantised(module):
            raise quantised_weights(f"site {site} of layer {layer}", module)
        if part.is_slice:
            whole = [other for other, its in self.architecture.sites.items() if its == Part(part.path)]
            raise ModelError(
                f"The site {site!r} is a slice of a fused weight, which cannot be changed by itself.",
                expected="a site that is a whole weight",
                found=f"{part.path}, which holds "
                + ", ".join(other for other, its in self.architecture.sites.items() if its.path == part.path),
                where=f"family {self.architecture.name!r}",
                remedy="take " + (repr(whole[0]) if whole else "another site, such as 'mlp.down'"),
            )
        return name

    def layout(self, site: str) -> tuple[tuple[int, ...], int]:
        """(shares, groups) of the module that a site is a slice of, in numbers; see `linear.cut_output`."""
        part, config = self.part(site), self.model.config
        shares = part.shares or (1,) * part.of

        def number(entry: int | str) -> int:
            return entry if isinstance(entry, int) else int(getattr(config, entry))

        return tuple(map(number, shares)), number(part.groups)

    def cut(self, site: str, output: Tensor) -> Tensor:
        """A site's own part of what its module returned: (batch, tokens, width)."""
        part = self.part(site)
        return cut_output(output, part.index, *self.layout(site)) if part.is_slice else output

    def parameter_name(self, site: str, layer: int, *, kind: str = "weight") -> str:
        """The full name of a site's weight (or bias) in `named_parameters()`.

        Raises `ConfigError` for a site that has no weight of its own, and as `module` does.
        """
        self.module(site, layer)
        if site not in WEIGHT_SITES:
            known = [name for name in self.architecture.sites if name in WEIGHT_SITES]
            raise unknown_name("site with a weight", site, known, where=f"family {self.architecture.name!r}")
        return _join(self.architecture.blocks, str(layer), self.part(site).path, kind)


def architectures() -> tuple[Architecture, ...]:
    """The built-in rows, then those that entry points of the group `palimpsest.architectures` add."""
    added = tuple(point.load() for point in plugins("palimpsest.architectures"))
    return FAMILIES + VARIANTS + MIXTURES + added


def resolve(model: nn.Module, architecture: Architecture | None = None) -> Sites:
    """Finds the row for a model and verifies every site with one forward pass over three tokens.

    Raises `ModelError` that names the sites looked for, and how to add a row.
    """
    config: Any = model.config
    row = architecture or _row_for(config)
    blocks = _submodule(model, row.blocks, row, "blocks")
    if not isinstance(blocks, nn.ModuleList) or len(blocks) == 0:
        raise _mismatch(row, "blocks", f"{row.blocks!r} is a {type(blocks).__name__}, not a list of blocks")
    embed = _submodule(model, row.embed, row, "embed")
    for site in ("final_norm", "unembed"):
        _submodule(model, getattr(row, site), row, site)
    sites = Sites(row, model, len(blocks), int(_weight(embed).shape[1]))
    for site in row.sites:
        for layer in range(sites.num_layers):
            module = _submodule(model, _join(row.blocks, str(layer), row.sites[site].path), row, site)
            if site in WEIGHT_SITES and not sites.is_linear(module) and not is_quantised(module):
                raise _not_linear(row, site, layer, module)
    _verify_slices(sites)
    _verify(sites)
    return sites


def _row_for(config: Any) -> Architecture:
    model_type, rows = str(config.model_type), architectures()
    candidates = [row for row in rows if model_type in row.model_types]
    for row in candidates:
        if all(getattr(config, name, None) == value for name, value in row.when.items()):
            return row
    remedy = (
        "describe the family in a palimpsest.Architecture and pass it to palimpsest.load(..., architecture=row),"
        " or register it in the entry-point group 'palimpsest.architectures'"
    )
    if candidates:
        raise ModelError(
            f"There is no site table for this layout of {model_type!r}.",
            expected=" or ".join(_settings(row.when) for row in candidates),
            found=_settings({name: getattr(config, name, None) for row in candidates for name in row.when}),
            where="the model's config",
            remedy=remedy,
        )
    _refuse_experts(config)
    known = sorted({kind for row in rows for kind in row.model_types})
    raise ModelError(
        f"There is no site table for models of type {model_type!r}.",
        expected=f"a model type among {', '.join(known)}",
        found=repr(model_type),
        where=f"sites looked for: blocks, embed, final_norm, unembed, {', '.join(SITE_NAMES)}",
        remedy=remedy,
    )


def num_experts(config: Any) -> int:
    """How many experts a layer chooses from; 0 or 1 for a dense model."""
    return max((count for name in EXPERT_FIELDS if isinstance(count := getattr(config, name, None), int)), default=0)


def _refuse_experts(config: Any) -> None:
    if num_experts(config) > 1:
        raise ModelError(
            f"There is no site table for mixtures of experts of type {config.model_type!r}.",
            expected="one weight matrix for every projection of a layer",
            found=f"{num_experts(config)} experts a layer: their weights are stacked in one tensor, behind a router",
            where="the model's config",
            remedy="pass a palimpsest.Architecture(..., is_mixture=True) that names the attention's sites alone, and"
            " edit these, with lora for example",
        )


def _settings(values: Mapping[str, object]) -> str:
    return " and ".join(f"{name} = {value}" for name, value in values.items())


def _many_matrices(sites: Sites, site: str) -> ModelError:
    config: Any = sites.model.config
    return ModelError(
        "A mixture of experts has no one MLP matrix a layer to edit.",
        expected=f"one weight matrix {site} a layer",
        found=f"{num_experts(config)} experts a layer, their weights stacked in one tensor behind a router",
        where=f"a model of type {config.model_type!r}",
        remedy="choose sites of the attention, such as attn.v or attn.out; lora does so by default, and ft trains all"
        " weights",
    )


def _not_linear(row: Architecture, site: str, layer: int, module: nn.Module) -> ModelError:
    return _mismatch(
        row,
        f"{site} of layer {layer}",
        f"a {qualified_name(module)}, not one of {', '.join(kind.__name__ for kind in LINEAR_TYPES)}"
        " (a layer that another library wrapped has to be unwrapped first: peft's merge_and_unload)",
    )


def _verify(sites: Sites) -> None:
    """Runs three tokens and checks the width of what every site of every layer reads and writes."""
    seen: dict[tuple[str, int], tuple[int, int]] = {}
    handles = []
    for site in sites.architecture.sites:
        for layer in range(sites.num_layers):

            def record(
                _module: nn.Module,
                args: Any,
                kwargs: Any,
                output: Any,
                *,
                key: tuple[str, int] = (site, layer),
            ) -> None:
                seen[key] = (int(first_input(args, kwargs).shape[-1]), int(first_tensor(output).shape[-1]))

            handles.append(sites.module(site, layer).register_forward_hook(record, with_kwargs=True))
    device = _weight(sites.module("embed")).device
    try:
        with torch.no_grad():
            ids = torch.arange(3, device=device)[None]
            sites.model(input_ids=ids, attention_mask=torch.ones_like(ids))
    except (RuntimeError, TypeError, ValueError) as error:
        raise ModelError(
            "The model cannot compute.",
            expected="a forward pass over three tokens",
            found=f"{type(error).__name__}: {str(error).strip().splitlines()[0]}",
            where=f"a {type(sites.model).__name__} in {sites.model.dtype} on {device}",
            remedy="check that transformers alone can run it here: model(input_ids=...)",
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    for (site, layer), expected in _expected_widths(sites).items():
        if seen.get((site, layer)) != expected:
            raise _mismatch(
                sites.architecture,
                f"{site} of layer {layer}",
                f"(input, output) widths {seen.get((site, layer), 'never reached')}, not {expected}",
            )


def _verify_slices(sites: Sites) -> None:
    """Checks that the slices of a fused projection come out in whole numbers of features."""
    for site, part in sites.architecture.sites.items():
        if not part.is_slice:
            continue
        width = features(sites.module(site, 0))[0]
        try:
            shares, groups = sites.layout(site)
        except AttributeError as error:
            raise _mismatch(sites.architecture, site, f"no such config field ({error})") from error
        if width % groups or any(width // groups * share % sum(shares) for share in shares):
            raise _mismatch(
                sites.architecture, site, f"{width} features, which {groups} groups of slices {shares} do not divide"
            )


def _expected_widths(sites: Sites) -> dict[tuple[str, int], tuple[int, int]]:
    expected = {}
    for site in sites.architecture.sites:
        for layer in range(sites.num_layers):
            if site in WEIGHT_SITES:
                out_features, in_features = features(sites.module(site, layer))
                # What writes into the residual stream must have its width; what reads from it likewise.
                writes, reads = site in ("mlp.down", "attn.out"), site not in ("mlp.down", "attn.out")
                expected[site, layer] = (
                    sites.d_model if reads else in_features,
                    sites.d_model if writes else out_features,
                )
            else:
                expected[site, layer] = (sites.d_model, sites.d_model)
    return expected


def _submodule(model: nn.Module, path: str, row: Architecture, site: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise _mismatch(row, site, f"no module {path!r} ({error})") from error


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    if not isinstance(weight, Tensor):
        raise ModelError("A module has no weight.", found=type(module).__name__)
    return weight


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def _mismatch(row: Architecture, site: str, found: str) -> ModelError:
    return ModelError(
        "The model does not have the layout that the site table says.",
        expected=f"family {row.name!r} as described in its row",
        found=found,
        where=f"site {site}",
        remedy="pass a corrected palimpsest.Architecture to palimpsest.load(..., architecture=row)",
    )
