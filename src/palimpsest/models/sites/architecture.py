"""From a model to its verified sites: the row is looked up by model type, then proved by one forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.errors import ConfigError, ModelError, unknown_name
from palimpsest.models.placement import device_of
from palimpsest.models.sites.linear import (
    LINEAR_TYPES,
    cut_output,
    features,
    is_linear,
    is_quantised,
    qualified_name,
    quantised_weights,
)
from palimpsest.models.sites.passing import first_input, first_tensor
from palimpsest.models.sites.rows import SITE_NAMES, Architecture, Part
from palimpsest.models.sites.table import num_experts, row_for

WEIGHT_SITES = tuple(name for name in SITE_NAMES if "." in name)
MATRICES = ("mlp.up", "mlp.gate", "mlp.down")
# What these write is added to the residual stream; the other sites with a weight read from it.
_WRITING_SITES = ("mlp.down", "attn.out", "cross.out")


@dataclass(frozen=True)
class Sites:
    """An architecture bound to one model: every path has been found, and seen to carry what the row says.

    On an encoder-decoder a site belongs to one of the two stacks: `encoder.mlp.down`, `decoder.mlp.down`. A name
    without a stack means the decoder's, so that what is written for decoder-only models goes on to work.

    Arguments:
        architecture: the row.
        model: the module the paths start at.
        num_layers: number of blocks, of the decoder where there is an encoder too.
        d_model: width of the residual stream.
        num_encoder_layers: number of the encoder's blocks.
    """

    architecture: Architecture
    model: nn.Module
    num_layers: int
    d_model: int
    num_encoder_layers: int = 0

    def names(self) -> list[str]:
        """All sites inside blocks; with their stack in front where there are two."""
        stacks = self.architecture.stacks
        if len(stacks) == 1:
            return list(self.architecture.sites)
        return [f"{stack}.{site}" for stack, parts in stacks.items() for site in parts.sites]

    def locate(self, site: str) -> tuple[str, str]:
        """(stack, site inside it): `encoder.mlp.down` is ("encoder", "mlp.down"), `mlp.down` the decoder's.

        Raises `ConfigError` for a site of an encoder where there is none.
        """
        stack, _, inside = site.partition(".")
        if stack not in ("encoder", "decoder"):
            return "decoder", site
        if stack not in self.architecture.stacks:
            raise ConfigError(
                "The model has no encoder.",
                expected="a site of a decoder",
                found=repr(site),
                where=f"family {self.architecture.name!r}",
                remedy=f"name the decoder's site: {inside}",
            )
        return stack, inside

    def layers_of(self, site: str) -> int:
        """Number of layers of the stack that a site belongs to."""
        return self.num_encoder_layers if self.locate(site)[0] == "encoder" else self.num_layers

    def module(self, site: str, layer: int | None = None) -> nn.Module:
        """The module of a site. `embed`, `final_norm` and `unembed` take no layer.

        Raises `ConfigError` for an unknown site, `ModelError` for a layer out of range, or for the `final_norm` of a
        model without one.
        """
        stack, inside = self.locate(site)
        if site == "unembed":
            return self.model.get_submodule(self.architecture.unembed)
        if inside in ("embed", "final_norm"):
            return self.model.get_submodule(self._outside(stack, inside))
        part, count = self.part(site), self.layers_of(site)
        if layer is None or not 0 <= layer < count:
            raise ModelError(
                "A layer is out of range.",
                expected=f"0 to {count - 1}",
                found=str(layer),
                where=f"site {site!r} of a model with {count} layers",
            )
        return self.model.get_submodule(_join(self.architecture.stacks[stack].blocks, str(layer), part.path))

    def part(self, site: str) -> Part:
        """Where a site lies inside a block.

        Raises `ConfigError` for an unknown one, `ModelError` for a matrix that a mixture of experts has many of.
        """
        stack, inside = self.locate(site)
        sites = self.architecture.stacks[stack].sites
        if inside not in sites:
            if self.architecture.is_mixture and inside in MATRICES:
                raise _many_matrices(self, site)
            raise unknown_name("site", site, self.names(), where=f"family {self.architecture.name!r}")
        return sites[inside]

    def has_weight(self, site: str) -> bool:
        """Whether a site is a layer with a weight, rather than a place that several of them write to."""
        return self.locate(site)[1] in WEIGHT_SITES

    def block(self, layer: int, stack: str = "decoder") -> nn.Module:
        """A whole block."""
        return self.model.get_submodule(_join(self.architecture.stacks[stack].blocks, str(layer)))

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
            together = {other: its for other, its in self.architecture.sites.items() if its.path == part.path}
            whole = next((other for other, its in together.items() if not its.is_slice), None)
            raise ModelError(
                f"The site {site!r} is a slice of a fused weight, which cannot be changed by itself.",
                expected="a site that is a whole weight",
                found=f"{part.path}, which holds {', '.join(other for other in together if other != whole)}",
                where=f"family {self.architecture.name!r}",
                remedy=f"take {whole!r}" if whole else "take another site, such as 'mlp.down'",
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
        if not self.has_weight(site):
            known = [name for name in self.names() if self.has_weight(name)]
            raise unknown_name("site with a weight", site, known, where=f"family {self.architecture.name!r}")
        blocks = self.architecture.stacks[self.locate(site)[0]].blocks
        return _join(blocks, str(layer), self.part(site).path, kind)

    def _outside(self, stack: str, name: str) -> str:
        """Path of a stack's embedding or final norm."""
        path: str | None = getattr(self.architecture.stacks[stack], name)
        if path is None:
            raise ModelError(
                "The model has no norm of its own before its head.",
                expected="a family with a final norm",
                found=f"family {self.architecture.name!r}, whose last block ends with a norm",
                where=f"site {name} of the {stack}",
            )
        return path


def resolve(model: nn.Module, architecture: Architecture | None = None) -> Sites:
    """Finds the row for a model and verifies every site with one forward pass over three tokens.

    Raises `ModelError` that names the sites looked for, and how to add a row.
    """
    config: Any = model.config
    row = architecture or row_for(config)
    has_encoder = bool(getattr(config, "is_encoder_decoder", False))
    if has_encoder is not (row.encoder is not None):
        raise _mismatch(row, "encoder", f"config.is_encoder_decoder = {has_encoder}")
    counts = {name: _count_blocks(model, row, name) for name in row.stacks}
    embed = _submodule(model, row.embed, row, "embed")
    _submodule(model, row.unembed, row, "unembed")
    sites = Sites(row, model, counts["decoder"], int(_weight(embed).shape[1]), counts.get("encoder", 0))
    for site in sites.names():
        for layer in range(sites.layers_of(site)):
            path = _join(row.stacks[sites.locate(site)[0]].blocks, str(layer), sites.part(site).path)
            module = _submodule(model, path, row, site)
            if sites.has_weight(site) and not sites.is_linear(module) and not is_quantised(module):
                raise _not_linear(row, site, layer, module)
    _verify_slices(sites)
    _verify(sites)
    return sites


def _count_blocks(model: nn.Module, row: Architecture, name: str) -> int:
    """Number of blocks of a stack, whose other parts are there too."""
    stack, label = row.stacks[name], "" if row.encoder is None else f"{name}."
    blocks = _submodule(model, stack.blocks, row, f"{label}blocks")
    if not isinstance(blocks, nn.ModuleList) or len(blocks) == 0:
        raise _mismatch(row, f"{label}blocks", f"{stack.blocks!r} is a {type(blocks).__name__}, not a list of blocks")
    _submodule(model, stack.embed, row, f"{label}embed")
    if stack.final_norm is not None:
        _submodule(model, stack.final_norm, row, f"{label}final_norm")
    return len(blocks)


def _many_matrices(sites: Sites, site: str) -> ModelError:
    config: Any = sites.model.config
    return ModelError(
        "A mixture of experts has no single MLP matrix per layer to edit.",
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
    for site in sites.names():
        for layer in range(sites.layers_of(site)):

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
    device = device_of(sites.module("embed"))
    try:
        with torch.no_grad():
            ids = torch.arange(3, device=device)[None]
            decoder = {} if sites.architecture.encoder is None else {"decoder_input_ids": ids[:, :2]}
            sites.model(input_ids=ids, attention_mask=torch.ones_like(ids), **decoder)
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
    for site in sites.names():
        part = sites.part(site)
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
    for site in sites.names():
        is_writing = sites.locate(site)[1] in _WRITING_SITES
        for layer in range(sites.layers_of(site)):
            if sites.has_weight(site):
                out_features, in_features = features(sites.module(site, layer))
                # What writes into the residual stream must have its width; what reads from it likewise.
                expected[site, layer] = (
                    in_features if is_writing else sites.d_model,
                    sites.d_model if is_writing else out_features,
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
