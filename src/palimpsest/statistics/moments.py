"""The second moment of a stream of vectors: a sum in float64 of products in float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from palimpsest.errors import DataError

BLOCK_ROWS = 4096
"""Rows whose products are added up in float32. The relative error of a sum is 2.4e-7 (Frobenius, normal keys, width
3,072), and at most `STATED_ERROR` for equal keys. Eigenvalues below some 1e-7 of the largest are therefore rounding."""

STATED_ERROR = 5e-6
"""Bound of the relative error of every entry, for keys that are all equal: the worst case, since all additions can
round in one direction. A chain of n of them then errs by n / 4 units (2^-24): half a unit of the sum's last place each
in the half of the chain where the sum is largest."""

CHAIN_ROWS = 256
"""Rows of a product that keeps the stated error even as one chain, which is up to the instruction set: 3.8e-6, and 15
additions of such products 0.2e-6. One chain of 4,096 rows errs by 6.1e-5, as MKL's SSE2 kernels do on narrow keys."""

STEP_ROWS = 512
"""Rows of a product that is added to the sum so far by the product itself. That saves reading and writing the sum once
more, a tenth to a third of the time, but with some kernels goes on with the chain; see `_keeps_error`."""

NARROW = 512
"""Width below which the time saved is not worth finding out."""

PANEL = 384
"""Columns of a panel. Only the panels on and above the diagonal are computed: 0.56 of the work at d 3072."""


class SecondMoment:
    """The uncentred sum of k k^T over the vectors seen so far, and their number.

    Products are taken in float32 over `STEP_ROWS` rows, or `CHAIN_ROWS` where that would not keep the stated error (in
    float64 for float64 rows, and where torch has been told that float32 products may be rounded) and added up to blocks
    of `BLOCK_ROWS`; the blocks are added up in float64. The stated errors hold with every instruction set.

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

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the sum: (width, width)."""
        return (self.width, self.width)

    @property
    def floor(self) -> float:
        """Share of the mean eigenvalue by which the moment is raised before it is inverted: none."""
        return 0.0

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
            self._add_block(block.to(dtype).contiguous())
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
            can_go_on = self.width >= NARROW and _keeps_error(self.width, start, block.device, torch.get_num_threads())
            product = _sum_of_products(block, start, end, can_go_on=can_go_on)
            self._panels[start:end, start:] += product.to(self._panels.device)


def _sum_of_products(block: Tensor, start: int, end: int, *, can_go_on: bool) -> Tensor:
    """A panel, (end - start, width - start), of the sum over a block's rows."""
    going_on = len(block) // STEP_ROWS * STEP_ROWS if can_go_on else 0
    product = block.new_zeros(end - start, block.shape[1] - start)
    for rows in torch.split(block[:going_on], STEP_ROWS):
        product.addmm_(rows[:, start:end].T, rows[:, start:])
    for rows in torch.split(block[going_on:], CHAIN_ROWS):
        product += rows[:, start:end].T @ rows[:, start:]
    return product


@lru_cache(maxsize=256)
def _keeps_error(width: int, start: int, device: torch.device, _threads: int) -> bool:
    """Whether products that are added to the sum so far by themselves keep the stated error on a panel of this shape.

    How many of its additions are one chain, a kernel chooses by processor, threads and shape. So it is measured, on
    keys that are equal in every row and differ in every column: their products round by every share of a unit.
    """
    end = min(start + PANEL, width)
    values = 1 + torch.arange(width, dtype=torch.float64, device=device).mul_((5**0.5 - 1) / 2).frac_().float()
    exact = values[start:end, None].double() * values[start:].double()
    rows = values.repeat(STEP_ROWS, 1)
    product = rows.new_zeros(end - start, width - start)
    for count in range(STEP_ROWS, BLOCK_ROWS + 1, STEP_ROWS):
        product.addmm_(rows[:, start:end].T, rows[:, start:])
        if not ((product.double() / count - exact).abs() <= STATED_ERROR * exact).all():
            return False
    return True


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
