"""Patches as one GGUF adapter, which llama.cpp puts beside the weights: the base stays quantised, the change exact."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from palimpsest.files import new_file
from palimpsest.patches.base import Patch
from palimpsest.patches.export import low_rank_factors, padded
from palimpsest.patches.gguf.changes import places_of, requests_of, require_weights
from palimpsest.patches.gguf.editing import checked_place, metadata
from palimpsest.patches.gguf.sources import source_file

if TYPE_CHECKING:
    from palimpsest.models import EditableModel


@dataclass(frozen=True)
class AdapterFile:
    """The written adapter.

    Arguments:
        file: the adapter.
        rank: of every tensor; smaller changes are padded with zeros.
        tensors: names of the base file's tensors that it changes.
        num_edits: edits that the patches carry.
        num_bytes: its size.
        base_sha256: SHA-256 of the base file.
    """

    file: Path
    rank: int
    tensors: tuple[str, ...]
    num_edits: int
    num_bytes: int
    base_sha256: str


def write_gguf_adapter(
    model: EditableModel, patches: Sequence[Patch], out: str | Path, *, template: str | Path | None = None
) -> AdapterFile:
    """Writes the patches as one GGUF adapter for llama.cpp (`--lora`): a new file, complete or not at all.

    llama.cpp scales each tensor by alpha divided by that tensor's own rank. All have one rank here, and alpha is that
    rank, so that the scale is 1 wherever the file is read.

    Arguments:
        template: for a Hugging Face model, a GGUF file of it; see `sources.source_file`.

    Raises `OutputError` where the file exists or the disk refuses, `PatchError` for a patch of another model,
    `ConfigError` for a change that is not a low-rank one of a linear layer's weight, `ModelError` for a GGUF file of
    another model.
    """
    import gguf

    file = checked_place(out)
    require_weights(patches)
    with model.patched(*patches):
        # Each of them belongs there.
        pass
    factors = padded(low_rank_factors(model, patches, alternative="edited weights instead: --as gguf"))
    rank = next(iter(factors.values()))[0].shape[0]
    with source_file(model, template) as source:
        places = places_of(model, source, [f"{name}.weight" for name in factors])
        writer = gguf.GGUFWriter(None, source.header.architecture)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))
        for key, value in metadata(source, patches).items():
            writer.add_string(key, value)
        names = []
        for name, (down, up) in factors.items():
            for place in places[f"{name}.weight"]:
                names.append(place.tensor.name)
                writer.add_tensor(f"{place.tensor.name}.lora_a", np.ascontiguousarray(down.numpy()))
                writer.add_tensor(f"{place.tensor.name}.lora_b", place.turn.rows_to_file(up.numpy()))
        with new_file(file) as draft:
            with closing(writer):
                writer.write_header_to_file(draft)
                writer.write_kv_data_to_file()
                writer.write_tensors_to_file()
            num_bytes = draft.stat().st_size
        return AdapterFile(file, rank, tuple(names), len(requests_of(patches)), num_bytes, source.digest)
