"""Second moments of which only blocks on the diagonal are kept, one for every expert of a mixture.

A key of a mixture is made of its experts' keys side by side, of which the router leaves at most k other than zero. So
for any change Delta = [Delta_1 ... Delta_E], by Cauchy and Schwarz,

    |Delta x|^2 = |sum_e Delta_e x_e|^2 <= k sum_e |Delta_e x_e|^2,    hence    C <= k * diag(C_1, ..., C_E)

in the order of symmetric matrices: what a solve keeps small in the blocks' metric bounds what it does to a text. The
inverse of the blocks leaves an expert alone that a fact's token is not sent to, and they take E width^2 numbers, where
the whole matrix takes (E width)^2: of 128 experts of width 768 0.6 GB instead of 77.
"""

from __future__ import annotations

import torch
from torch import Tensor

from palimpsest.errors import ConfigError

LARGEST_WHOLE = 65_536
"""Width from which on a matrix of all inputs together is refused: it takes 34 GB."""


def apart(rows: Tensor, like: Tensor) -> Tensor:
    """Rows (n, blocks * width) as (blocks, n, width), where `like` has three axes; else as they are."""
    return rows if like.ndim == 2 else rows.reshape(len(rows), like.shape[0], -1).transpose(0, 1)


def together(rows: Tensor) -> Tensor:
    """The way back: (blocks, n, width) as (n, blocks * width)."""
    return rows if rows.ndim == 2 else rows.transpose(0, 1).flatten(1)


def width_of(matrices: Tensor) -> int:
    """Length of a key: of matrices (width, ...) that, of blocks (blocks, width, ...) their number times it."""
    return int(matrices.shape[-2]) * (int(matrices.shape[0]) if matrices.ndim == 3 else 1)


def diagonal_blocks(matrix: Tensor, like: Tensor) -> Tensor:
    """The blocks of a matrix (width, width) that stand on its diagonal, where `like` has three axes."""
    if like.ndim == 2:
        return matrix
    count, size = like.shape[0], like.shape[-1]
    return torch.stack([matrix[i * size : (i + 1) * size, i * size : (i + 1) * size] for i in range(count)])


def whole(blocks: Tensor, what: str) -> Tensor:
    """Blocks as one matrix, (width, width). Raises `ConfigError` where that is too large.

    Arguments:
        what: the option that needs it.
    """
    if blocks.ndim == 2:
        return blocks
    require_whole(width_of(blocks), what)
    joined: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return joined


def require_whole(width: int, what: str) -> None:
    """Raises `ConfigError` for keys too long for a matrix of all their entries together."""
    if width > LARGEST_WHOLE:
        raise ConfigError(
            "The experts of this layer read too much together for one matrix of it all.",
            expected=f"keys of at most {LARGEST_WHOLE:,} entries",
            found=f"{width:,} entries, {8 * width * width / 1e9:,.0f} GB",
            where=f"option {what}",
            remedy=f"leave {what} out",
        )
