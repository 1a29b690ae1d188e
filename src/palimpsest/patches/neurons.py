"""Neurons added to a decoder's MLP: a parallel branch act(q k^T + b) v from what the MLP reads to what it writes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import TypeAdapter
from torch import Tensor

from palimpsest.errors import PatchError
from palimpsest.files import shaped
from palimpsest.models import Attachment, Point, activation, attach
from palimpsest.patches.branches import Branch, require_shapes, require_weight

if TYPE_CHECKING:
    from palimpsest.models import EditableModel


@dataclass(frozen=True, eq=False)
class Neurons(Branch):
    """Added neurons of one layer, in float32.

    They can become more columns of the MLP's own matrices; see `patches.widening`.

    Arguments:
        layer: the decoder's layer.
        weight: full name of its down-projection's weight.
        activation: a name from `models.activations`.
        keys: (neurons, width), what each neuron looks for in what the MLP reads.
        biases: (neurons,), or `None`.
        values: (neurons, width), what each adds to what the MLP writes.
        edits: (neurons,), the id of the edit that each belongs to.
        constant: (width,), whose product with what the MLP reads is about 1 on any text, in place of a bias in an MLP
            that has none; or `None`.
    """

    form: ClassVar[str] = "neurons"
    layer: int
    weight: str
    activation: str
    keys: Tensor
    biases: Tensor | None
    values: Tensor
    edits: tuple[str, ...]
    constant: Tensor | None = None

    def __post_init__(self) -> None:
        activation(self.activation)
        shape = (len(self.edits), self.keys.shape[-1])
        shapes = {"keys": shape, "biases": shape[:1], "values": shape, "constant": shape[1:]}
        require_shapes(self.form, self.tensors(), {name: shapes[name] for name in self.tensors()})

    def output(self, inputs: Tensor) -> Tensor:
        """Returns the neurons' output, (..., width), in float32, for the MLP's inputs, (..., width)."""
        device = inputs.device
        before = inputs.float() @ self.keys.to(device).t()
        if self.biases is not None:
            before = before + self.biases.to(device)
        return activation(self.activation)(before) @ self.values.to(device)

    def attach(self, model: EditableModel) -> Attachment:
        """See `Branch.attach`."""
        read: list[Tensor] = []

        def keep(tensor: Tensor) -> None:
            read[:] = [tensor]

        def add(written: Tensor) -> Tensor:
            return written + self.output(read.pop()).to(written.device, written.dtype)

        up, down = Point("mlp.up", self.layer, "input"), Point("mlp.down", self.layer)
        return attach(model.sites, {up: keep, down: add})

    def check(self, model: EditableModel) -> None:
        """See `Branch.check`."""
        require_weight(model, "mlp.down", self.layer, self.weight)
        if self.keys.shape[1] != model.sites.d_model:
            raise PatchError(
                "A patch does not fit the model.",
                expected=f"neurons of width {model.sites.d_model}",
                found=f"width {self.keys.shape[1]}",
                where=f"layer {self.layer}",
            )

    def joined(self, later: Neurons) -> Neurons:
        """Both, side by side."""
        biases = None
        if self.biases is not None and later.biases is not None:
            biases = torch.cat([self.biases, later.biases])
        keys, values = torch.cat([self.keys, later.keys]), torch.cat([self.values, later.values])
        edits, constant = self.edits + later.edits, later.constant if self.constant is None else self.constant
        return replace(self, keys=keys, biases=biases, values=values, edits=edits, constant=constant)

    def without(self, edits: Collection[str]) -> Neurons | None:
        """See `Branch.without`."""
        return self.select([index for index, edit in enumerate(self.edits) if edit not in edits])

    def select(self, indices: Sequence[int]) -> Neurons | None:
        """Some of the neurons; `None` for none."""
        if not indices:
            return None
        at = list(indices)
        biases = None if self.biases is None else self.biases[at]
        edits = tuple(self.edits[index] for index in at)
        return replace(self, keys=self.keys[at], biases=biases, values=self.values[at], edits=edits)

    def place(self) -> tuple[Any, ...]:
        """See `Branch.place`."""
        return self.form, self.weight, self.activation, self.biases is None

    def owners(self) -> list[str]:
        """See `Branch.owners`."""
        return list(self.edits)

    def tensors(self) -> dict[str, Tensor]:
        """See `Branch.tensors`."""
        found = {"keys": self.keys, "biases": self.biases, "values": self.values, "constant": self.constant}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def options(self) -> dict[str, Any]:
        """See `Branch.options`."""
        return {"layer": self.layer, "weight": self.weight, "activation": self.activation, "edits": list(self.edits)}

    @classmethod
    def from_saved(cls, tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> Neurons:
        """See `Branch.from_saved`."""
        edits = TypeAdapter(tuple[str, ...]).validate_python(options["edits"])
        keys = shaped(tensors["keys"], len(edits), None, name="keys").float()
        biases = shaped(tensors["biases"], len(edits), name="biases").float() if "biases" in tensors else None
        values = shaped(tensors["values"], *keys.shape, name="values").float()
        width = keys.shape[-1]
        constant = shaped(tensors["constant"], width, name="constant").float() if "constant" in tensors else None
        place = int(options["layer"]), str(options["weight"]), str(options["activation"])
        return cls(*place, keys, biases, values, edits, constant)
