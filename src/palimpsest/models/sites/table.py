"""The site table as a whole: all rows, and which of them is a model's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from palimpsest.errors import ModelError
from palimpsest.models.sites.encoder_decoders import ENCODER_DECODERS
from palimpsest.models.sites.families import FAMILIES
from palimpsest.models.sites.mixtures import EXPERT_FIELDS, MIXTURES
from palimpsest.models.sites.rows import SITE_NAMES, Architecture
from palimpsest.models.sites.variants import VARIANTS
from palimpsest.registry import plugins

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def architectures() -> tuple[Architecture, ...]:
    """The built-in rows, then those that entry points of the group `palimpsest.architectures` add."""
    added = tuple(point.load() for point in plugins("palimpsest.architectures"))
    return FAMILIES + VARIANTS + MIXTURES + ENCODER_DECODERS + added


def row_for(config: PretrainedConfig) -> Architecture:
    """The row for a model with this config. Raises `ModelError` that names the sites looked for and how to add one."""
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


def num_experts(config: PretrainedConfig) -> int:
    """How many experts a layer chooses from; 0 or 1 for a dense model."""
    return max((count for name in EXPERT_FIELDS if isinstance(count := getattr(config, name, None), int)), default=0)


def experts_per_token(config: PretrainedConfig) -> int:
    """To how many experts of a layer a token is sent; all of them where the config does not say."""
    chosen = getattr(config, "num_experts_per_tok", None)
    return chosen if isinstance(chosen, int) else num_experts(config)


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
