"""Added parameters and memories: branches beside a model's own layers, which stay as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import TypeAdapter
from torch import Tensor

from palimpsest.errors import PatchError, near_matches, unknown_name
from palimpsest.patches.base import Manifest, Patch, PatchKind, joined
from palimpsest.patches.branches import Branch
from palimpsest.patches.codebook import Codebook
from palimpsest.patches.neurons import Neurons
from palimpsest.patches.retrieval import Retrieval
from palimpsest.patches.side_memories import SideMemories

if TYPE_CHECKING:
    from palimpsest.models import Attachment, EditableModel, StackedChange

FORMS: dict[str, type[Branch]] = {branch.form: branch for branch in (Neurons, Codebook, Retrieval, SideMemories)}


class ModulePatch(Patch):
    """Branches that are added to sites of a model.

    Arguments:
        branches: what is added. Those of one place are joined.
        manifest: where they came from.

    `p + q` is both, the later one's parts instead of those they replace.
    """

    kind: ClassVar[PatchKind] = "modules"

    def __init__(self, branches: Sequence[Branch], manifest: Manifest | None = None) -> None:
        by_place: dict[tuple[Any, ...], Branch] = {}
        for branch in branches:
            place = branch.place()
            by_place[place] = by_place[place].joined(branch) if place in by_place else branch
        self.branches = tuple(branch for branch in by_place.values() if not branch.is_empty)
        self.manifest = manifest or Manifest(label="unnamed")

    def without(self, *edits: str) -> ModulePatch:
        """The patch without what belongs to these edits, in whatever order they were made.

        Raises `PatchError` for an edit that nothing in the patch belongs to.
        """
        known = [owner for branch in self.branches for owner in branch.owners()]
        for edit in edits:
            if edit not in known:
                close = near_matches(edit, known)
                raise PatchError(
                    "Nothing in the patch belongs to this edit.",
                    expected=f"the id of one of {len(set(known))} edits" + (f": {', '.join(close)}" if close else ""),
                    found=repr(edit),
                    where=f"patch {self.manifest.label!r}",
                    remedy="see patch.manifest.edits; an edit that was right before has no part of its own",
                )
        left = [branch.without(edits) for branch in self.branches]
        kept = [edit for edit in self.manifest.edits if edit.get("id") not in edits]
        return ModulePatch(
            [branch for branch in left if branch is not None], self.manifest.model_copy(update={"edits": kept})
        )

    def __add__(self, later: ModulePatch) -> ModulePatch:
        if not isinstance(later, ModulePatch):
            return NotImplemented
        return ModulePatch([*self.branches, *later.branches], joined(self.manifest, later.manifest))

    def __radd__(self, other: object) -> ModulePatch:
        # The start of `sum(patches)`.
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def followed_by(self, other: Patch) -> ModulePatch | None:
        return self + other if isinstance(other, ModulePatch) else None

    def put_on(self, model: EditableModel) -> StackedChange:
        """Puts the branches on with hooks; see `Patch.put_on`."""
        for branch in self.branches:
            branch.check(model)

        def install() -> list[Attachment]:
            handles: list[Attachment] = []
            try:
                for branch in self.branches:
                    handles.append(branch.attach(model))
            except BaseException:
                for handle in handles:
                    handle.remove()
                raise
            return handles

        return model.weights.push(self.manifest.label, {}, origin=self, install=install)

    def touched(self) -> list[str]:
        return sorted({branch.weight for branch in self.branches})

    def is_empty(self) -> bool:
        return not self.branches

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"{index}.{branch.form}/{name}": part
            for index, branch in enumerate(self.branches)
            for name, part in branch.tensors().items()
        }

    def payload(self) -> dict[str, Any]:
        return {"branches": [{"form": branch.form, **branch.options()} for branch in self.branches]}

    @classmethod
    def from_saved(cls, tensors: Mapping[str, Tensor], manifest: Manifest, parts: Mapping[str, Patch]) -> Self:
        listed = TypeAdapter(list[dict[str, Any]]).validate_python(manifest.payload["branches"])
        branches = [_branch(f"{index}.", dict(options), tensors) for index, options in enumerate(listed)]
        return cls(branches, manifest)


def _branch(prefix: str, options: dict[str, Any], tensors: Mapping[str, Tensor]) -> Branch:
    """One branch of what a manifest lists. Raises `ConfigError` for an unknown form."""
    name = str(options.pop("form"))
    if name not in FORMS:
        raise unknown_name("form of branch", name, FORMS)
    form = FORMS[name]
    start = f"{prefix}{form.form}/"
    return form.from_saved(
        {name.removeprefix(start): part for name, part in tensors.items() if name.startswith(start)}, options
    )
