"""What has been computed once, under a name made of everything that determines it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from palimpsest.models.fingerprint import exact_digest
from palimpsest.patches.storage import write_tensors
from palimpsest.provenance import digest, new_file, now, versions

if TYPE_CHECKING:
    from palimpsest.models.editable import EditableModel
    from palimpsest.models.hooks import Point
    from palimpsest.statistics.text import Text

FORMAT_VERSION = 1
_ENDING = ".safetensors"
_RECORD = "record"
# What a config says of where and how a model was stored, not of what it computes.
_NOT_COMPUTED = {"_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache"}


def default_folder() -> Path:
    """`$PALIMPSEST_CACHE`, else `palimpsest` in `$XDG_CACHE_HOME`, else `~/.cache/palimpsest`."""
    chosen = os.environ.get("PALIMPSEST_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "palimpsest"


@dataclass(frozen=True)
class Entry:
    """What a cache file holds: tensors, and a record with the identity they were computed under."""

    tensors: dict[str, Tensor]
    record: dict[str, Any]


class Cache:
    """A folder of safetensors files, each named by the digest of an identity.

    Arguments:
        folder: where; left out, see `default_folder`. It is made when something is first written.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = (folder or default_folder()) / "statistics"

    def file(self, identity: Mapping[str, Any]) -> Path:
        """Where something of this identity is kept."""
        return self.folder / f"{digest(identity)}{_ENDING}"

    def read(self, identity: Mapping[str, Any]) -> Entry | None:
        """What is kept under an identity; `None` when there is nothing, or it is not readable."""
        file = self.file(identity)
        try:
            with safe_open(file, framework="pt") as stored:
                record = json.loads((stored.metadata() or {})[_RECORD])
                # A digest is short; the identity itself decides.
                if record["identity"] != _plain(identity):
                    return None
                return Entry({name: stored.get_tensor(name) for name in stored.keys()}, record)  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError):
            return None

    def write(self, identity: Mapping[str, Any], tensors: Mapping[str, Tensor], **facts: Any) -> None:
        """Keeps tensors and facts under an identity. Raises `OutputError` when the disk refuses."""
        record = {"identity": _plain(identity), "created": now(), "versions": versions(), **facts}
        stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        with new_file(self.file(identity)) as draft:
            write_tensors(stored, draft, metadata={_RECORD: json.dumps(record)})

    def drop(self, identity: Mapping[str, Any]) -> None:
        """Forgets what is kept under an identity, if anything."""
        self.file(identity).unlink(missing_ok=True)

    def records(self) -> list[dict[str, Any]]:
        """The records of all files, with their names and sizes, newest first; unreadable files are left out."""
        found = []
        for file in self.folder.glob(f"*{_ENDING}"):
            with contextlib.suppress(OSError, SafetensorError, KeyError, ValueError), safe_open(file, "pt") as stored:
                record = json.loads((stored.metadata() or {})[_RECORD])
                found.append({**record, "file": str(file), "bytes": file.stat().st_size})
        return sorted(found, key=lambda record: str(record["created"]), reverse=True)


def identity(model: EditableModel, point: Point, text: Text, limits: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that determines the second moment at a point, but for the rounding of one machine or another.

    Weights and buffers count as far as the point's layer, all of them and bit by bit: what lies above has no
    influence. The model's name does not count.

    Arguments:
        limits: how much of the text is read, and how: `max_tokens`, `tolerance`, `row_length`.
    """
    return {
        "format": FORMAT_VERSION,
        "kind": "second moment",
        "site": point.site,
        "layer": point.layer,
        "side": point.side,
        "weights": _weights_digest(model, point),
        "config": digest(computed_config(model.module.config)),
        "tokenizer": model.tokenizer_digest,
        "text": text.identity(),
        **limits,
    }


def _weights_digest(model: EditableModel, point: Point) -> str:
    sites = model.sites
    stacks = dict(sites.architecture.stacks)
    own = stacks.pop(sites.locate(point.site)[0])
    blocks = f"{own.blocks}."
    # What a key inside the stack cannot depend on: the head, the norm before it, and the blocks of another stack.
    later = [sites.architecture.unembed, own.final_norm, *(stack.blocks for stack in stacks.values())]
    unused = tuple(f"{path}." for path in later if path)

    def has_influence(name: str) -> bool:
        if name.startswith(blocks):
            return point.layer is None or int(name.removeprefix(blocks).split(".")[0]) <= point.layer
        return not name.startswith(unused)

    # Every name of a tied weight is asked: an embedding counts also where it is the head as well.
    names = {name for name, _ in model.module.named_parameters(remove_duplicate=False) if has_influence(name)}
    weights = sorted({model.weights.canonical(name) for name in names})
    buffers = [(name, buffer) for name, buffer in model.module.named_buffers() if has_influence(name)]
    return digest(
        [f"{name}:{model.weights.exact_digest(name)}" for name in weights]
        + [f"{name}:{exact_digest(buffer)}" for name, buffer in buffers]
    )


def computed_config(config: Any) -> dict[str, Any]:
    """What a config says of what its model computes."""
    return {name: value for name, value in config.to_dict().items() if name not in _NOT_COMPUTED}


def _plain(identity: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back."""
    plain: dict[str, Any] = json.loads(json.dumps(identity, default=str))
    return plain
