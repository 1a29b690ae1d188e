"""An edited GGUF file: changed tensors in a type that carries the edit, everything else byte for byte, and a way back.

What is written is measured: the bytes are read again, and the edits' prompts asked with them. A file in which an edit
does not survive is not left behind.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from palimpsest.answers import gives_new
from palimpsest.checkpoints import (
    GGUF,
    Array,
    NewTensor,
    StoredPlace,
    read_header,
    stored_values,
    type_name,
    write_edited,
)
from palimpsest.errors import ConfigError, ModelError, some_of
from palimpsest.files import expanded, new_file, require_absent
from palimpsest.models import replies_to
from palimpsest.patches.base import Patch
from palimpsest.patches.gguf.changes import (
    changed_names,
    changes,
    keys_at,
    places_of,
    requests_of,
    require_weights,
    turned_back,
)
from palimpsest.patches.gguf.modelfile import modelfile
from palimpsest.patches.gguf.precision import LARGEST_ERROR, LEAST_KEPT, Change, Survival, chosen, kept_type
from palimpsest.patches.gguf.sources import SourceFile, source_file
from palimpsest.patches.gguf.undoing import write_way_back
from palimpsest.provenance import versions
from palimpsest.requests import EditRequest

if TYPE_CHECKING:
    from palimpsest.models import EditableModel


@dataclass(frozen=True)
class WrittenTensor:
    """One tensor that was written.

    Arguments:
        name: in the file.
        old_type: its type before.
        new_type: its type now.
        error: see `precision.Survival`.
        kept: see `precision.Survival`.
    """

    name: str
    old_type: str
    new_type: str
    error: float
    kept: float


@dataclass(frozen=True)
class EditedFile:
    """The written file.

    Arguments:
        file: the edited file.
        modelfile: Ollama's description of it.
        undo: what is needed to make the original file of it again.
        tensors: the edited tensors, as measured in the written file.
        num_edits: edits that the patches carry.
        held: edits whose answer the patched model gives, in floating point.
        answers: by prompt, what the written weights say.
        old_bytes: size of the original file.
        new_bytes: size of the edited one.
        base_sha256: SHA-256 of the original file.
    """

    file: Path
    modelfile: Path
    undo: Path
    tensors: tuple[WrittenTensor, ...]
    num_edits: int
    held: int
    answers: dict[str, str]
    old_bytes: int
    new_bytes: int
    base_sha256: str


def beside(file: Path) -> tuple[Path, Path]:
    """Where the Modelfile and the way back of an edited file go."""
    return file.with_suffix(".Modelfile"), file.with_suffix(".undo")


def write_gguf(
    model: EditableModel,
    patches: Sequence[Patch],
    out: str | Path,
    *,
    template: str | Path | None = None,
    keep_type: bool = False,
) -> EditedFile:
    """Writes an edited GGUF file, a Modelfile for Ollama and the way back: new files, complete or not at all.

    Arguments:
        model: read from a GGUF file, or from a Hugging Face folder.
        patches: changes of weights, the first one lowest.
        out: the file to be, which ends in `.gguf`.
        template: for a Hugging Face model, a GGUF file of it; see `sources.source_file`.
        keep_type: write every edited tensor in the type it has, with the rounding errors at the edits' prompts fed
            back, instead of a type of more bits.

    Raises `OutputError` where a file exists or the disk refuses, `PatchError` for a patch of another model,
    `ConfigError` for a patch without a form in GGUF, `ModelError` for a GGUF file of another model, a type that cannot
    be written, and an edit that does not survive in the written file.
    """
    file = checked_place(out)
    for one in beside(file):
        require_absent(one)
    require_weights(patches)
    requests = requests_of(patches)
    with source_file(model, template) as source, model.patched(*patches):
        names = changed_names(model)
        places = places_of(model, source, names)
        wanted = changes(model, source, places, keys_at(model, requests, names))
        choose = kept_type if keep_type else chosen
        written = {change.name: choose(change) for change in wanted}
        held = [request for request, text in _asked(model, requests) if gives_new(request, text, is_chat=_chats(model))]
        return _write(model, source, file, patches, places, wanted, written, held, is_kept=keep_type)


def checked_place(out: str | Path) -> Path:
    """The path of a GGUF file to be. Raises `ConfigError` for another ending, `OutputError` where it cannot be."""
    file = expanded(out)
    if file.suffix.lower() != GGUF:
        raise ConfigError(
            "A GGUF file is named so.",
            expected=f"a name that ends in {GGUF}",
            found=str(out),
            remedy=f"--out {file}{GGUF}",
        )
    require_absent(file)
    return file


def _write(
    model: EditableModel,
    source: SourceFile,
    file: Path,
    patches: Sequence[Patch],
    places: Mapping[str, Sequence[StoredPlace]],
    wanted: Sequence[Change],
    chosen_tensors: Mapping[str, tuple[NewTensor, Survival]],
    held: Sequence[EditRequest],
    *,
    is_kept: bool,
) -> EditedFile:
    described, way_back = beside(file)
    tensors = {name: tensor for name, (tensor, _) in chosen_tensors.items()}
    records = [_record(change, *chosen_tensors[change.name]) for change in wanted]
    with ExitStack() as drafts:
        # The edited file takes its name last: where it is, all of it is.
        draft, description, kept = (drafts.enter_context(new_file(one)) for one in (file, described, way_back))
        back = write_edited(source.header, draft, tensors, metadata(source, patches, records))
        measured, answers = _measured(model, draft, places, wanted, held, is_kept=is_kept)
        description.write_text(modelfile(file.name, model.tokenizer), encoding="utf-8")
        write_way_back(kept, back, source.digest, source.header.size)
        new_bytes = draft.stat().st_size
    return EditedFile(
        file=file,
        modelfile=described,
        undo=way_back,
        tensors=tuple(measured),
        num_edits=len(requests_of(patches)),
        held=len(held),
        answers=answers,
        old_bytes=source.header.size,
        new_bytes=new_bytes,
        base_sha256=source.digest,
    )


def _measured(
    model: EditableModel,
    draft: Path,
    places: Mapping[str, Sequence[StoredPlace]],
    wanted: Sequence[Change],
    held: Sequence[EditRequest],
    *,
    is_kept: bool,
) -> tuple[list[WrittenTensor], dict[str, str]]:
    """Measures how much of the change the written file has. Raises `ModelError` if it is too little."""
    header = read_header(draft)
    by_name = {tensor.name: tensor for tensor in header.tensors}
    values: dict[str, Array] = {}
    records = []
    for change in wanted:
        tensor = by_name[change.name]
        values[change.name] = stored_values(header, tensor)
        survival = change.survival(values[change.name])
        records.append(_record(change, NewTensor(tensor.kind, values[change.name]), survival))
        if survival.kept < LEAST_KEPT or (not is_kept and survival.error > LARGEST_ERROR):
            raise ModelError(
                "The edit does not survive in the written file.",
                expected=f"at least {LEAST_KEPT:.0%} of what it adds, an error of at most {LARGEST_ERROR}",
                found=f"{survival.kept:.0%}, an error of {survival.error:.2f}",
                where=f"tensor {change.name} as {type_name(tensor.kind)}",
            )
    weights = turned_back(model, places, values)
    compute = {name: partial(_replaced, tensor) for name, tensor in weights.items()}
    on = model.weights.push("the written file", compute)
    try:
        texts = dict(_texts(_asked(model, held)))
    finally:
        model.weights.remove(on)
    lost = [one.prompt for one in held if not gives_new(one, texts[one.prompt], is_chat=_chats(model))]
    if lost:
        raise ModelError(
            "The written file does not give the edits' answers, which the patched model gives.",
            expected=f"the new answers to all {len(held)} prompts",
            found=f"another one to {len(lost)}: {some_of([f'{one} {texts[one]!r}' for one in lost], between='; ')}",
            remedy="leave --keep-type out" if is_kept else "make the edit again with more steps, so that it is firmer",
        )
    return records, texts


def _replaced(tensor: Tensor, _below: Tensor) -> Tensor:
    return tensor


def _record(change: Change, tensor: NewTensor, survival: Survival) -> WrittenTensor:
    return WrittenTensor(
        change.name, type_name(change.kind), type_name(tensor.kind), round(survival.error, 5), round(survival.kept, 5)
    )


def _asked(model: EditableModel, requests: Sequence[EditRequest]) -> list[tuple[EditRequest, str]]:
    if not requests:
        return []
    with torch.no_grad():
        return list(zip(requests, replies_to(model, requests), strict=True))


def _texts(asked: Sequence[tuple[EditRequest, str]]) -> list[tuple[str, str]]:
    return [(request.prompt, text) for request, text in asked]


def _chats(model: EditableModel) -> bool:
    return model.chat is not None


def metadata(
    source: SourceFile, patches: Sequence[Patch], records: Sequence[WrittenTensor] | None = None
) -> dict[str, str]:
    """Returns the edits' metadata for a file or an adapter, under our own keys; those of earlier edits are kept.

    Arguments:
        records: the edited tensors; left out for an adapter.
    """
    former = source.header.metadata
    manifests: list[Any] = _former(former, "patches")
    edits: list[Any] = _former(former, "edits")
    for patch in patches:
        manifest = patch.manifest.model_dump(mode="json")
        edits += [{**edit, "probes": []} for edit in manifest.pop("edits")]
        manifests.append({**manifest, "edits": len(patch.manifest.edits)})
    found = {
        "version": versions().get("palimpsest-lm", ""),
        "base.sha256": source.digest,
        "base.name": str(former.get("general.name", "")),
        "patches": json.dumps(manifests, ensure_ascii=False),
        "edits": json.dumps(edits, ensure_ascii=False),
    }
    if records is not None:
        types = {one.name: [one.old_type, one.new_type] for one in records}
        survivals = {one.name: {"error": one.error, "kept": one.kept} for one in records}
        found |= {"tensors": json.dumps(types), "survival": json.dumps(survivals)}
    return {f"palimpsest.{key}": value for key, value in found.items()}


def _former(metadata: Mapping[str, Any], key: str) -> list[Any]:
    try:
        found = json.loads(metadata.get(f"palimpsest.{key}", "[]"))
    except (TypeError, ValueError):
        return []
    return found if isinstance(found, list) else []
