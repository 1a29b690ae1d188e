"""From a model to its verified sites: the row is looked up by model type, then proved by one forward pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.errors import ModelError
from palimpsest.models.placement import device_of
from palimpsest.models.sites.architecture import Sites
from palimpsest.models.sites.experts import is_experts
from palimpsest.models.sites.linear import LINEAR_TYPES, features, is_quantised, qualified_name
from palimpsest.models.sites.passing import first_input, first_tensor
from palimpsest.models.sites.rows import Architecture
from palimpsest.models.sites.table import row_for

# What these write is added to the residual stream; the other sites with a weight read from it.
_WRITING_SITES = ("mlp.down", "attn.out", "cross.out")


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
            module = _submodule(model, sites.path(site, layer), row, site)
            is_matrix = sites.is_linear(module) or is_quantised(module)
            if sites.has_weight(site) and not is_matrix and not sites.holds_experts(site, layer):
                raise _not_linear(row, site, layer, module)
    _verify_slices(sites)
    return replace(sites, unreached=_verify(sites))


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


def _not_linear(row: Architecture, site: str, layer: int, module: nn.Module) -> ModelError:
    return _mismatch(
        row,
        f"{site} of layer {layer}",
        f"a {qualified_name(module)}, not one of {', '.join(kind.__name__ for kind in LINEAR_TYPES)}"
        " (a layer that another library wrapped has to be unwrapped first: peft's merge_and_unload)",
    )


def _verify(sites: Sites) -> frozenset[tuple[str, int]]:
    """Runs three tokens and checks the width of what every site of every layer reads and writes.

    Returns the experts that were not reached.
    """
    seen: dict[tuple[str, int], tuple[int, int]] = {}
    expected, handles = _expected_widths(sites), []
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

            if (site, layer) in expected:
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
    unreached = {(site, layer) for site, layer in expected.keys() - seen.keys() if sites.holds_experts(site, layer)}
    for (site, layer), widths in expected.items():
        if (site, layer) not in unreached and seen.get((site, layer)) != widths:
            raise _mismatch(
                sites.architecture,
                f"{site} of layer {layer}",
                f"(input, output) widths {seen.get((site, layer), 'never reached')}, not {widths}",
            )

    return frozenset(unreached)


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
            if sites.holds_experts(site, layer):
                # What the router hands over is as wide as the stream. Packed experts may be run by other means.
                if is_experts(sites.module(site, layer)):
                    expected[site, layer] = (sites.d_model, sites.d_model)
            elif sites.has_weight(site):
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


def _mismatch(row: Architecture, site: str, found: str) -> ModelError:
    return ModelError(
        "The model does not have the layout that the site table says.",
        expected=f"family {row.name!r} as described in its row",
        found=found,
        where=f"site {site}",
        remedy="pass a corrected palimpsest.Architecture to palimpsest.load(..., architecture=row)",
    )
