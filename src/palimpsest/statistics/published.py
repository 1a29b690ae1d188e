"""Second moments that others computed: the .npz files published with ROME and MEMIT, and those EasyEdit writes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from palimpsest.errors import DataError
from palimpsest.files import require_regular
from palimpsest.models.sites import features
from palimpsest.provenance import file_digest
from palimpsest.statistics.moments import SecondMoment

if TYPE_CHECKING:
    from palimpsest.models import EditableModel, Point

_LARGEST_ASYMMETRY = 1e-4


class PublishedMoments:
    """A folder of .npz files, one a module, named by ROME: `transformer.h.17.mlp.c_proj_float32_mom2_100000.npz`.

    Such a file holds `mom2.mom2`, the sum of k k^T, and `mom2.count`, the number of tokens. It does not say which
    weights it was computed with: only its shape can be checked against the model.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._digests: dict[Path, str] = {}

    def read(self, model: EditableModel, point: Point) -> tuple[SecondMoment, None, dict[str, Any]]:
        """(moment, `None` for its error, identity) of a point's file. Raises `DataError` when it does not fit."""
        width = features(model.sites.module(point.site, point.layer))[1]
        return read_npz(self._file(model, point), width=width), None, self.identity(model, point)

    def identity(self, model: EditableModel, point: Point) -> dict[str, Any]:
        """The identity of the moment at a point: the content of its file."""
        file = self._file(model, point)
        if file not in self._digests:
            self._digests[file] = file_digest(file)[:16]
        content = {"name": file.name, "sha256": self._digests[file]}
        return {"kind": "published", "site": point.site, "layer": point.layer, **content}

    def _file(self, model: EditableModel, point: Point) -> Path:
        module = model.sites.parameter_name(point.site, point.layer or 0).removesuffix(".weight")
        files = sorted(self.folder.glob(f"{module}_*.npz"))
        if len(files) == 1:
            return files[0]
        raise DataError(
            "A layer's published second moment is missing.",
            expected=f"one file {module}_*.npz",
            found=", ".join(file.name for file in files) or "none",
            where=str(self.folder),
            remedy="put that file alone into a folder, or name a text to collect from",
        )


def read_npz(file: Path, *, width: int) -> SecondMoment:
    """The second moment in a published .npz file.

    Arguments:
        file: the file.
        width: length of a key of the module it belongs to.

    Raises `DataError` when it is no such file or does not fit; nothing in it is unpickled.
    """
    try:
        require_regular(file)
        with np.load(file, allow_pickle=False) as stored:
            prefix = "mom2." if "mom2.mom2" in stored else ""
            total, count = np.asarray(stored[f"{prefix}mom2"], dtype=np.float64), int(stored[f"{prefix}count"])
    except Exception as error:  # numpy, zipfile and the parser of the header raise whatever a damaged file makes them
        raise _unusable(
            file, f"{type(error).__name__}: {error}", "an .npz file with mom2.mom2 and mom2.count"
        ) from error
    if total.shape != (width, width):
        raise _unusable(file, f"shape {total.shape}", f"shape ({width}, {width}), the module's number of inputs")
    if not np.isfinite(total).all() or count < 1:
        raise _unusable(file, f"a count of {count} and {(~np.isfinite(total)).sum()} not finite", "finite numbers")
    asymmetry = float(np.abs(total - total.T).max() / max(np.abs(total).max(), 1e-300))
    if asymmetry > _LARGEST_ASYMMETRY or (total.diagonal() < 0).any():
        raise _unusable(file, f"asymmetry {asymmetry:.1e}", "a symmetric matrix with no negative diagonal entry")
    return SecondMoment.from_sum(torch.from_numpy((total + total.T) / 2), count)


def _unusable(file: Path, found: str, expected: str) -> DataError:
    return DataError(
        "The published second moment cannot be used.",
        expected=expected,
        found=found,
        where=str(file),
        remedy="take the file of this model and layer, or collect it from a text",
    )
