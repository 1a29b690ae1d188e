"""The second moment of a stream of vectors: a sum in float64 of products in float32."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from palimpsest.errors import DataError

BLOCK_ROWS = 4096
"""Rows whose products are added up in float32. The relative error of a sum is 2.4e-7 (Frobenius, normal keys, width
3,072), and at most 5e-6 for equal keys. Eigenvalues below some 1e-7 of the largest are therefore rounding."""

CHAIN_ROWS = 256
"""Rows of one float32 product. An addition rounds by half a unit, all in one direction for keys that are all equal, and
how many of a product's additions are one chain is up to the instruction set: with MKL's SSE2 kernels and 4,096 rows all
of them are, and the error is 5e-5."""

PANEL = 384
"""Columns of a panel. Only the panels on and above the diagonal are computed: 0.56 of the work at d 3072."""


class SecondMoment:
    """The uncentred sum of k k^T over the vectors seen so far, and their number.

    Products are taken in float32 over `CHAIN_ROWS` rows (in float64 for float64 rows, and where torch has been told
    that float32 products may be rounded) and added up to blocks of `BLOCK_ROWS`; the blocks are added up
    in float64. The stated errors hold with every instruction set.

    Arguments:
        width: length of a vector.
        device: where the sum lives; the products are computed where the rows are. The sum takes 8 width^2 bytes:
            75 MB at 3,072, 1.6 GB at 14,336.
    """

    def __init__(self, width: int, *, device: torch.device | str = "cpu") -> None:
        self.width = width
        self.count = 0
        # Up to date in the panels on and above the diagonal only.
        self._panels = torch.zeros(width, width, dtype=torch.float64, device=device)

    @classmethod
    def from_sum(cls, total: Tensor, count: int) -> SecondMoment:
        """A moment from its sum, (width, width), and count. The tensor is taken over, not copied."""
        moment = cls(0)
        moment.width, moment.count, moment._panels = int(total.shape[0]), count, total.double()
        return moment

    def add(self, rows: Tensor, *, where: Callable[[int], str] = "row {}".format) -> None:
        """Takes in vectors, (n, width). Raises `DataError` that names the first one that is not finite.

        Arguments:
            where: from the index of a row to what to call it in the message.
        """
        if rows.ndim != 2 or rows.shape[1] != self.width:
            raise ValueError(f"expected rows of width {self.width}, found shape {tuple(rows.shape)}")
        dtype = _product_dtype(rows)
        for block in torch.split(rows, BLOCK_ROWS):
            _require_finite(block, where, self.count)
            self._add_block(block.to(dtype))
            self.count += len(block)

    def merge(self, other: SecondMoment) -> SecondMoment:
        """The moment of both streams together, as a new object."""
        if other.width != self.width:
            raise ValueError(f"widths differ: {self.width} and {other.width}")
        return SecondMoment.from_sum(self._panels + other._panels.to(self._panels.device), self.count + other.count)

    def sum(self) -> Tensor:
        """The sum of k k^T, (width, width), float64, symmetric bit for bit."""
        return self._panels.triu() + self._panels.triu(1).T

    def mean(self) -> Tensor:
        """E[k k^T], (width, width), float64."""
        return self.sum().div_(max(self.count, 1))

    def _add_block(self, block: Tensor) -> None:
        for start in range(0, self.width, PANEL):
            end = min(start + PANEL, self.width)
            first, *others = torch.split(block, CHAIN_ROWS)
            product = first[:, start:end].T @ first[:, start:]
            for rows in others:
                # Not addmm_: for some sizes it goes on with the chain of the product before.
                product += rows[:, start:end].T @ rows[:, start:]
            self._panels[start:end, start:] += product.to(self._panels.device)


def _product_dtype(rows: Tensor) -> torch.dtype:
    is_exact = torch.get_float32_matmul_precision() == "highest"
    return torch.float32 if is_exact and rows.dtype != torch.float64 else torch.float64


def _require_finite(block: Tensor, where: Callable[[int], str], before: int) -> None:
    # One pass over the block; only a sum that is not finite is worth a closer look.
    if torch.isfinite(block.sum()):
        return
    broken = (~torch.isfinite(block)).any(dim=1).nonzero()
    if not len(broken):
        return
    row = int(broken[0, 0])
    raise DataError(
        "A key is not finite, so there is no second moment.",
        expected="finite numbers",
        found=f"{int((~torch.isfinite(block[row])).sum())} of {block.shape[1]} entries are NaN or infinite",
        where=where(before + row),
        remedy="load the model in float32 or bfloat16; float16 overflows beyond 65,504",
    )
