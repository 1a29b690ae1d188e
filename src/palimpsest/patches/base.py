"""The patch: what an edit changed, where it came from, and how it is put on and taken off."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar, final

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter
from torch import Tensor

from palimpsest import processes
from palimpsest.errors import PatchError
from palimpsest.files import new_folder, write_json, write_tensors
from palimpsest.models import Chat, ChatRecord, fingerprint_differences, whole_tensor
from palimpsest.provenance import file_digest, now, versions
from palimpsest.showing import counted, html_table, named, size

if TYPE_CHECKING:
    from palimpsest.models import EditableModel, PatchStack, StackedChange

PatchKind = Literal["weights", "modules", "inputs", "routers"]

FORMAT_VERSION = 1
TENSORS = "patch.safetensors"
MANIFEST_FILE = "manifest.json"
PARTS = "parts"
"""Files of a patch's folder, and the folder in it of the patches that it consists of."""


class Touched(BaseModel):
    """A tensor that a patch changes, as the base model has it."""

    model_config = ConfigDict(extra="forbid")

    shape: list[int]
    digest: str


class Base(BaseModel):
    """The fingerprint of a base model; see `models.fingerprint`."""

    model_config = ConfigDict(extra="forbid")

    config: dict[str, Any]
    weights: str
    touched: dict[str, Touched]
    file: str | None = None


MaybeBase = TypeVar("MaybeBase", dict[str, Any], dict[str, Any] | None)


def checked_base(base: MaybeBase) -> MaybeBase:
    """A recorded fingerprint. Raises pydantic's `ValidationError` for what is no fingerprint."""
    return None if base is None else Base.model_validate(base).model_dump(exclude_none=True)


def checked_chat(chat: ChatRecord | None) -> ChatRecord | None:
    """A recorded chat. Raises pydantic's `ValidationError` for other texts."""
    return None if chat is None else TypeAdapter(Chat).validate_python(chat).to_dict()


class Manifest(BaseModel):
    """The description of a patch. Written beside its tensors as `manifest.json`."""

    model_config = ConfigDict(extra="forbid")

    format_version: int = FORMAT_VERSION
    kind: PatchKind = "weights"
    label: str
    """What it is in one line: `ft`, `-0.3 * lora + ft`."""
    method: str | None = None
    preset: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    """Every option with its value, defaults included."""
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    model: str | None = None
    base: Annotated[dict[str, Any] | None, AfterValidator(checked_base)] = None
    """Fingerprint of the model it was made for; `None` for one that was put together by hand."""
    chat: Annotated[ChatRecord | None, AfterValidator(checked_chat)] = None
    """The chat that the edits were made in (see `models.chat.Chat`); `None` for plain prompts."""
    stacked_on: list[str] = Field(default_factory=list)
    """Labels of the patches that were on the model when this one was made."""
    edits: list[dict[str, Any]] = Field(default_factory=list)
    """The requests with their probes: the patch's own tests."""
    diagnostics: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=versions)
    hardware: dict[str, Any] = Field(default_factory=dict)
    """What it was made on, as `provenance.hardware` says it; empty for one that was put together by hand."""
    created: str = Field(default_factory=now)
    tensors_sha256: str | None = None
    tensor_layout: dict[str, Any] = Field(default_factory=dict)
    """What each tensor or site is changed by."""
    payload: dict[str, Any] = Field(default_factory=dict)
    """What the patch is beside its tensors, as its kind writes it."""


@dataclass(frozen=True, eq=False)
class Applied:
    """A patch that lies on a model."""

    stack: PatchStack
    layer: StackedChange

    def remove(self) -> None:
        """Takes it off; the model is what it would be without it, bit for bit."""
        self.stack.remove(self.layer)


class Patch(ABC):
    """The change that an edit made: tensors, and plain data beside them.

    A patch does nothing until it is applied, is never changed by being applied, and is put on whole or not at all.
    """

    kind: ClassVar[PatchKind]
    manifest: Manifest

    # What every kind says of itself

    @abstractmethod
    def put_on(self, model: EditableModel) -> StackedChange:
        """Puts the patch on the model's stack; `apply` has checked that it belongs there."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Its numbers by name, as they are saved."""

    @classmethod
    @abstractmethod
    def from_saved(cls, tensors: Mapping[str, Tensor], manifest: Manifest, parts: Mapping[str, Patch]) -> Self:
        """The patch that was saved; raises `KeyError` or `ValueError` when tensors and manifest do not go together."""

    @abstractmethod
    def touched(self) -> list[str]:
        """Names of the parameters or sites it changes."""

    @abstractmethod
    def is_empty(self) -> bool:
        """Whether applying it changes nothing."""

    def norm(self) -> float | None:
        """Frobenius norm of all it adds to weights; `None` for a patch that adds nothing to them."""
        return None

    def payload(self) -> dict[str, Any]:
        """Returns the plain data of the patch, JSON-ready."""
        return {}

    def layout(self) -> dict[str, str]:
        """What each tensor or site is changed by."""
        return {}

    def saved_parts(self) -> Mapping[str, Patch]:
        """Patches that are saved in its folder, by name."""
        return {}

    def followed_by(self, other: Patch) -> Patch | None:
        """One patch that does what this one does and then `other`, which was made on top of it.

        `None` when the two have to lie on the model one above the other. Raises `PatchError` when what comes out
        cannot be a patch.
        """
        return None

    # What is the same for all

    @final
    def apply(self, model: EditableModel) -> Applied:
        """Puts the patch on a model.

        Raises `PatchError`, that names what differs, when it was made for another model or on top of a patch that is
        not there, and when it is on the model already.
        """
        self._check_base(model)
        self._refuse_again(model)
        return Applied(model.weights, self.put_on(model))

    def save(self, path: str | Path) -> None:
        """Writes a new folder of safetensors and JSON that appears complete or not at all.

        Where several processes are at work, all of them must call this, and the first one writes.

        Raises `OutputError` when the folder exists or the disk refuses.
        """
        if processes.rank() == 0:
            with new_folder(Path(path)) as draft:
                self.write(draft)
        else:
            self._hand_over()
        processes.wait()

    def write(self, draft: Path) -> None:
        """Writes the patch's files into a folder that is still a draft."""
        draft.mkdir(parents=True, exist_ok=True)
        tensors = {name: whole_tensor(part.detach()).cpu().contiguous() for name, part in self.tensors().items()}
        write_tensors(tensors, draft / TENSORS)
        manifest = self.manifest.model_copy(
            update={
                "kind": self.kind,
                "tensors_sha256": file_digest(draft / TENSORS),
                "tensor_layout": self.layout(),
                "payload": self.payload(),
            }
        )
        write_json(draft / MANIFEST_FILE, manifest.model_dump(), indent=2)
        for name, part in self.saved_parts().items():
            part.write(draft / PARTS / name)

    def _hand_over(self) -> None:
        """Takes part in gathering what the first process writes, in its order, and keeps none of it."""
        for part in self.tensors().values():
            whole_tensor(part.detach())
        for kept in self.saved_parts().values():
            kept._hand_over()

    def __repr__(self) -> str:
        edits, changed = len(self.manifest.edits), len(self.touched())
        return named(
            self,
            repr(self.manifest.label),
            counted(edits, "edit") if edits else "",
            f"{counted(changed, 'place')} changed" if changed else "",
            f"{self.num_parameters:,} numbers",
            size(self.num_bytes),
        )

    def _repr_html_(self) -> str:
        """Shows the new and old answers; ask the model for its present ones."""
        edits = self.manifest.edits
        rows = [(edit.get("prompt"), edit.get("target_old"), edit.get("target_new")) for edit in edits]
        return html_table(repr(self), ("prompt", "before", "after"), rows)

    @property
    def num_parameters(self) -> int:
        """How many numbers the patch holds."""
        return sum(part.numel() for part in self.tensors().values())

    @property
    def num_bytes(self) -> int:
        """How many bytes these numbers take."""
        return sum(part.numel() * part.element_size() for part in self.tensors().values())

    def is_same(self, other: Patch) -> bool:
        """Whether the two change the same things by the same numbers."""
        if self is other or type(self) is not type(other) or self.touched() != other.touched():
            return self is other
        mine, theirs = self.tensors(), other.tensors()
        return (
            mine.keys() == theirs.keys()
            and self.payload() == other.payload()
            and all(torch.equal(mine[name], theirs[name].to(mine[name])) for name in mine)
        )

    def differences_from(self, model: EditableModel) -> list[str]:
        """Lists differences between the model and the one that the patch was made for; empty if it fits."""
        if self.manifest.base is None:
            return []
        here = set(model.weights.names())
        return fingerprint_differences(
            self.manifest.base, model.fingerprint([name for name in self.manifest.base["touched"] if name in here])
        )

    def _refuse_again(self, model: EditableModel) -> None:
        """A patch put on twice is nearly always a slip, and goes twice as far as was tested."""
        if self.is_empty():
            return
        if any(isinstance(one, Patch) and one.is_same(self) for one in model.weights.origins):
            remedy = "take it off first"
            if self.kind == "weights":
                remedy += "; or, if twice the change is what you want, put 2 * patch on instead"
            raise PatchError(
                "The patch is on the model already.",
                expected="each patch once",
                found=f"{self.manifest.label!r} twice",
                where=f"model {model.name!r}, with {', '.join(model.weights.labels)} on it",
                remedy=remedy,
            )

    def _check_base(self, model: EditableModel) -> None:
        below = [label for label in self.manifest.stacked_on if label not in model.weights.labels]
        if below:
            remedy = "put those on first" + (", or add them up: first + second" if self.kind == "weights" else "")
            raise PatchError(
                "The patch was made on top of another one, which is not on the model.",
                expected=f"these patches below it: {', '.join(self.manifest.stacked_on)}",
                found=", ".join(model.weights.labels) or "no patch",
                where=f"model {model.name!r}",
                remedy=remedy,
            )
        lines = self.differences_from(model)
        if lines:
            shown = lines[:6] + ([f"and {len(lines) - 6} more"] if len(lines) > 6 else [])
            raise PatchError(
                "The patch was made for another model.",
                expected=f"the model it was made for ({self.manifest.model})",
                found="; ".join(shown),
                where=f"model {model.name!r}",
                remedy="load the model the patch was made for, or make the edit again on this one",
            )


def joined(first: Manifest, second: Manifest) -> Manifest:
    """The manifest of two patches in one. Raises `PatchError` when the two were made for different models."""
    base = first.base or second.base
    if first.base is not None and second.base is not None:
        lines = [line for line in fingerprint_differences(first.base, second.base) if "is missing" not in line]
        if lines:
            raise PatchError(
                "Two patches for different models cannot be added.",
                expected="two patches for one model",
                found="; ".join(lines[:4]),
            )
        base = {**first.base, "touched": {**second.base["touched"], **first.base["touched"]}}
    # Two edits may carry one id, from files that both number their rows; what they say tells them apart.
    edits = {
        tuple(str(edit.get(key)) for key in ("id", "prompt", "target_new")): edit
        for edit in (*first.edits, *second.edits)
    }
    return Manifest(
        kind=first.kind,
        label=f"{first.label} + {second.label}",
        model=first.model or second.model,
        base=base,
        chat=first.chat if first.edits else second.chat,
        stacked_on=[label for label in first.stacked_on if label in second.stacked_on],
        edits=list(edits.values()),
    )
