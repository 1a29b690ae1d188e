"""Whether a second moment has seen enough text: how far its two halves disagree about C^-1 k.

That direction is what ROME's update follows and what the other solves weigh keys by; the size of C cancels there.
For independent Gaussian keys of dimension d its relative error after n tokens is sqrt(d / n): a quarter at 16 tokens
for every dimension. Halves of n / 2 tokens differ by twice that, so half their difference estimates it.
"""

from __future__ import annotations

from itertools import count as counting

from torch import Tensor

from palimpsest.errors import DataError
from palimpsest.solve import Factorised
from palimpsest.statistics.moments import SecondMoment


def direction_error(first: SecondMoment, second: SecondMoment, keys: Tensor) -> float | None:
    """Half the mean difference of the unit vectors along C^-1 k under two independent halves of a text.

    Whether a key was itself counted does not matter: that changes the length of C^-1 k, not its direction.

    Arguments:
        first: the second moment of one half.
        second: of the other.
        keys: (n, width), typical keys.

    Returns `None` where a half is singular.
    """
    if not len(keys) or min(first.count, second.count) < first.width:
        return None
    try:
        units = [_directions(half, keys) for half in (first, second)]
    except DataError:
        return None
    return float((units[0] - units[1]).norm(dim=1).mean()) / 2


def is_due(before: int, now: int, width: int) -> bool:
    """Whether a check lies between two counts of tokens: at 8, 12, 16, 24, 32, 48, ... for every dimension."""
    for power in counting(3):
        for multiple in (2**power, 3 * 2 ** (power - 1)):
            if before < multiple * width <= now:
                return True
            if multiple * width > now:
                return False
    return False


def _directions(half: SecondMoment, keys: Tensor) -> Tensor:
    solved = Factorised(half.mean(), damping=half.floor).solve(keys)
    lengths: Tensor = solved.norm(dim=1, keepdim=True)
    return solved / lengths.clamp(min=1e-300)
