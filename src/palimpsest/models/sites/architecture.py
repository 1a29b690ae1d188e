"""An architecture bound to a model: from sites and layers to modules and parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from palimpsest.errors import ConfigError, ModelError, unknown_name
from palimpsest.models.sites.experts import is_experts
from palimpsest.models.sites.linear import (
    EXPERTS_MATRIX,
    cut_output,
    is_linear,
    is_quantised,
    qualified_name,
    quantised_weights,
)
from palimpsest.models.sites.plain import is_plain
from palimpsest.models.sites.rows import SITE_NAMES, Architecture, Part
from palimpsest.models.sites.table import num_experts

WEIGHT_SITES = tuple(name for name in SITE_NAMES if "." in name)
MATRICES = ("mlp.up", "mlp.gate", "mlp.down")


@dataclass(frozen=True)
class Sites:
    """An architecture bound to one model: every path has been found, and seen to carry what the row says.

    On an encoder-decoder a site belongs to one of the two stacks: `encoder.mlp.down`, `decoder.mlp.down`. A name
    without a stack means the decoder's, so that what is written for decoder-only models goes on to work.

    Arguments:
        architecture: the row.
        model: the module the paths start at.
        num_layers: number of blocks, of the decoder if there is an encoder too.
        d_model: width of the residual stream.
        num_encoder_layers: number of the encoder's blocks.
        unreached: sites and layers of experts that the model computes by other means than their module, as some kernels
            do, so that nothing can be seen of them.
    """

    architecture: Architecture
    model: nn.Module
    num_layers: int
    d_model: int
    num_encoder_layers: int = 0
    unreached: frozenset[tuple[str, int]] = frozenset()

    def names(self) -> list[str]:
        """All sites inside blocks; with their stack in front where there are two."""
        stacks = self.architecture.stacks
        if len(stacks) == 1:
            return list(self.architecture.sites)
        return [f"{stack}.{site}" for stack, parts in stacks.items() for site in parts.sites]

    def locate(self, site: str) -> tuple[str, str]:
        """(stack, site inside it): `encoder.mlp.down` is ("encoder", "mlp.down"), `mlp.down` the decoder's.

        Raises `ConfigError` for a site of an encoder if there is none.
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
        return self.model.get_submodule(self.path(site, layer))

    def path(self, site: str, layer: int | None) -> str:
        """The full name of the module of a site inside a block. Raises as `module` does."""
        part, count = self.part(site), self.layers_of(site)
        if layer is None or not 0 <= layer < count:
            raise ModelError(
                "A layer is out of range.",
                expected=f"0 to {count - 1}",
                found=str(layer),
                where=f"site {site!r} of a model with {count} layers",
            )
        block = dotted(self.architecture.stacks[self.locate(site)[0]].blocks, str(layer))
        path = dotted(block, part.path)
        if part.otherwise is None:
            return path
        # Some layers of a mixture have an MLP instead of experts.
        return path if _has(self.model, path) else dotted(block, part.otherwise)

    def holds_experts(self, site: str, layer: int) -> bool:
        """Whether what a site is at a layer are the experts of a mixture, be they plain numbers or packed."""
        part = self.part(site)
        return part.is_experts and self.path(site, layer).endswith(part.path)

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

    @property
    def mlp_ends(self) -> tuple[str, str]:
        """The sites whose input and whose output are what a block's MLP reads and writes.

        In a mixture, whose experts have an up-projection each, and which may have shared ones, both are the module as a
        whole.
        """
        return ("mlp", "mlp") if self.architecture.is_mixture else ("mlp.up", "mlp.down")

    def has_weight(self, site: str) -> bool:
        """Whether a site is a layer with a weight, rather than a place that several of them write to."""
        return self.locate(site)[1] in WEIGHT_SITES

    def block(self, layer: int, stack: str = "decoder") -> nn.Module:
        """A whole block."""
        return self.model.get_submodule(dotted(self.architecture.stacks[stack].blocks, str(layer)))

    def is_linear(self, module: nn.Module) -> bool:
        """Whether a module is a linear layer with a plain weight, by this family's types."""
        return is_linear(module, self.architecture.linear_types)

    def require_weight(self, site: str, layer: int, *, takes_experts: bool = False) -> str:
        """The full name of a site's weight, of which a method wants to compute and change the numbers.

        Raises as `parameter_name` does, and `ModelError` for a weight that is quantised or shared with other sites.
        """
        name = self.parameter_name(site, layer, takes_experts=takes_experts)
        module, part = self.module(site, layer), self.part(site)
        if is_quantised(module):
            raise quantised_weights(f"site {site} of layer {layer}", module)
        if part.is_slice:
            together = {other: its for other, its in self.architecture.sites.items() if its.path == part.path}
            whole = next((other for other, its in together.items() if not its.is_slice), None)
            raise ModelError(
                f"The site {site!r} is a slice of a fused weight, which cannot be changed separately.",
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

    def parameter_name(self, site: str, layer: int, *, kind: str = "weight", takes_experts: bool = False) -> str:
        """The full name of a site's weight (or bias) in `named_parameters()`.

        Arguments:
            kind: `weight` or `bias`.
            takes_experts: whether the parameter of three axes that holds a mixture's experts will do; see
                `sites.experts`.

        Raises `ConfigError` for a site that has no weight of its own, `ModelError` for experts that will not do or that
        are packed, and as `module` does.
        """
        module = self.module(site, layer)
        if not self.has_weight(site):
            known = [name for name in self.names() if self.has_weight(name)]
            raise unknown_name("site with a weight", site, known, where=f"family {self.architecture.name!r}")
        if self.holds_experts(site, layer):
            if not takes_experts:
                raise _many_matrices(self, site)
            if not is_experts(module) or (site, layer) in self.unreached:
                raise _other_experts(f"site {site} of layer {layer}", module)
            kind = EXPERTS_MATRIX if kind == "weight" else f"{EXPERTS_MATRIX}_{kind}"
        return dotted(self.path(site, layer), kind)

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


def _has(model: nn.Module, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


def _many_matrices(sites: Sites, site: str) -> ModelError:
    config: Any = sites.model.config
    return ModelError(
        "A mixture of experts has no single MLP matrix per layer to edit.",
        expected=f"one weight matrix {site} a layer",
        found=f"{num_experts(config)} experts a layer, their weights stacked in one tensor behind a router",
        where=f"a model of type {config.model_type!r}",
        remedy="choose sites of the attention, such as attn.v or attn.out, as lora does by default; or take a method"
        " that writes into the experts' mlp.down: memit, rome, emmet, alphaedit, ft-l",
    )


def _other_experts(where: str, module: nn.Module) -> ModelError:
    down = getattr(module, EXPERTS_MATRIX, None)
    if down is not None and not is_plain(down):
        return quantised_weights(where, module)
    return ModelError(
        "The experts of this mixture of experts are not stored in a way that can be edited.",
        expected=f"one parameter {EXPERTS_MATRIX} of three axes with the experts' matrices, all in this process",
        found=f"a {qualified_name(module)}",
        where=where,
        remedy="take lora, which edits the attention; or load the model with transformers' own class in one process,"
        " without kernels that take its place",
    )


def dotted(*parts: str) -> str:
    """Parts of a path with dots between them; empty ones are left out."""
    return ".".join(part for part in parts if part)
