"""The second moment of a mixture's keys: one for every expert, of the tokens that are sent to it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from palimpsest.statistics.moments import SecondMoment


class BlockMoments(SecondMoment):
    """The blocks on the diagonal of a second moment; see `solve.blocks`.

    Arguments:
        width: length of a key, all blocks together.
        blocks: how many; they are of equal size.
    """

    def __init__(self, width: int, blocks: int) -> None:
        self.width = width
        self.count = 0
        self.blocks = [SecondMoment(width // blocks) for _ in range(blocks)]

    @property
    def shape(self) -> tuple[int, ...]:
        """(blocks, width of one, the same)."""
        return (len(self.blocks), self.blocks[0].width, self.blocks[0].width)

    @property
    def floor(self) -> float:
        """Share of the mean eigenvalue by which the moment is raised, so that experts without tokens do not break it.

        It is as if one token more had been read, all of its length in every block and in no direction of it.
        """
        return len(self.blocks) / max(self.count, 1)

    def add(self, rows: Tensor, *, where: Callable[[int], str] = "row {}".format) -> None:
        """Takes in keys, (n, width); a block takes those that are not zero in it. Raises as `SecondMoment.add` does."""
        if rows.ndim != 2 or rows.shape[1] != self.width:
            raise ValueError(f"expected rows of width {self.width}, found shape {tuple(rows.shape)}")
        for block, own in zip(self.blocks, torch.split(rows, self.blocks[0].width, dim=1), strict=True):
            hit = own.any(dim=1).nonzero()[:, 0]
            before, names = block.count, hit.tolist()

            def name(row: int, *, before: int = before, names: list[int] = names) -> str:
                return where(names[row - before])

            block.add(own[hit], where=name)
        self.count += len(rows)

    def merge(self, other: SecondMoment) -> SecondMoment:
        """The moment of both streams together, as a new object."""
        if other.shape != self.shape:
            raise ValueError(f"shapes differ: {self.shape} and {other.shape}")
        return moment_of(self.sum() + other.sum(), self.count + other.count)

    def sum(self) -> Tensor:
        """The sums of k k^T, (blocks, width, width), float64, each symmetric bit for bit."""
        return torch.stack([block.sum() for block in self.blocks])


def moment_of(total: Tensor, count: int) -> SecondMoment:
    """A moment from its sum, (width, width) or (blocks, width, width), and the number of its tokens."""
    if total.ndim == 2:
        return SecondMoment.from_sum(total, count)
    moment = BlockMoments(total.shape[0] * total.shape[1], total.shape[0])
    moment.count = count
    moment.blocks = [SecondMoment.from_sum(one, count) for one in total]
    return moment


def empty_moment(width: int, blocks: int) -> SecondMoment:
    """That of no token: whole, or in blocks if there is more than one."""
    return SecondMoment(width) if blocks == 1 else BlockMoments(width, blocks)
