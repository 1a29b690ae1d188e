"""The patch: what an edit changed, where it came from, and how it is put on and taken off."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from palimpsest.provenance import now, versions

if TYPE_CHECKING:
    from pathlib import Path

    from palimpsest.models.editable import EditableModel

FORMAT_VERSION = 1


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


class Manifest(BaseModel):
    """What a patch says of itself. Written beside its tensors as `manifest.json`."""

    model_config = ConfigDict(extra="forbid")

    format_version: int = FORMAT_VERSION
    kind: Literal["weights"] = "weights"
    label: str
    """What it is in one line: `ft`, `-0.3 * lora + ft`."""
    method: str | None = None
    preset: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    """Every option with its value, defaults included."""
    seed: int | None = None
    model: str | None = None
    base: dict[str, Any] | None = None
    """Fingerprint of the model it was made for; `None` for one that was put together by hand."""
    chat: dict[str, str] | None = None
    """The chat that the edits were made in, as texts (see `models.chat.Chat`); `None` for plain prompts."""
    stacked_on: list[str] = Field(default_factory=list)
    """Labels of the patches that were on the model when this one was made."""
    edits: list[dict[str, Any]] = Field(default_factory=list)
    """The requests with their probes: the patch's own tests."""
    diagnostics: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=versions)
    created: str = Field(default_factory=now)
    tensors_sha256: str | None = None
    tensor_layout: dict[str, Any] = Field(default_factory=dict)

    @field_validator("base")
    @classmethod
    def _is_fingerprint(cls, base: dict[str, Any] | None) -> dict[str, Any] | None:
        return None if base is None else Base.model_validate(base).model_dump()


class Applied(Protocol):
    """A patch that lies on a model."""

    def remove(self) -> None:
        """Takes it off; the model is what it would be without it, bit for bit."""


class Patch(ABC):
    """What an edit changed.

    A patch does nothing until it is applied, is never changed by being applied, and is put on whole or not at all.
    """

    manifest: Manifest

    @abstractmethod
    def apply(self, model: EditableModel) -> Applied:
        """Puts the patch on a model. Raises `PatchError`, that names what differs, when it was made for another."""

    @abstractmethod
    def save(self, path: str | Path) -> None:
        """Writes a new folder of safetensors and JSON. Raises `OutputError` when it exists or the disk refuses."""

    @property
    @abstractmethod
    def num_parameters(self) -> int:
        """How many numbers the patch holds."""

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """How many bytes these numbers take."""

    @abstractmethod
    def touched(self) -> list[str]:
        """Names of the parameters or sites it changes."""

    @abstractmethod
    def is_empty(self) -> bool:
        """Whether applying it changes nothing."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Its numbers by name, as they are saved."""
