"""The interface of an editor for evaluation. Methods have it, and any other object with a name and an `edit`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from palimpsest.stopwatch import Progress

if TYPE_CHECKING:
    from palimpsest.models import EditableModel
    from palimpsest.patches import Patch
    from palimpsest.requests import EditRequest


class EditorDiagnostics(Protocol):
    """How an edit went, as far as evaluation reads it."""

    @property
    def seconds(self) -> dict[str, float]:
        """By stage; `total` is all of them."""


class EditorOutcome(Protocol):
    """The result of an edit."""

    @property
    def patch(self) -> Patch:
        """The change of the model."""

    @property
    def state(self) -> Any:
        """State to pass to a sequential method's next call."""

    @property
    def diagnostics(self) -> EditorDiagnostics:
        """How it went."""


class Editor(Protocol):
    """Something that edits. What is not a method inherits from it, and with it the answers to what it has no say in."""

    State: ClassVar[Any] = None
    """The class that reads back a stored state, with `load(path)`; `None` where an edit leaves none."""

    @property
    def name(self) -> str:
        """Name in records."""

    def resolve(self, model: EditableModel) -> tuple[Any, Any]:
        """The complete configuration for a model and the preset it comes from, if any."""

    def check(self, requests: Sequence[EditRequest]) -> None:
        """Raises when the requests are not what it needs; costs nothing."""

    def training_cost(self, model: EditableModel) -> dict[str, float]:
        """Returns the cost of training the editor for the model: seconds, bytes, parameters."""
        del model
        return {}

    def edit(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        state: Any = None,
        *,
        progress: Progress = ...,
    ) -> EditorOutcome:
        """A patch that makes the requests true; the model stays as it is."""
