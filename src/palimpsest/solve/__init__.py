"""The linear solves of locate-then-edit methods: from keys and residuals to a low-rank change. No model is known here.

Everywhere keys are rows (n, in) and residuals are rows (n, out); a change is `left @ right`, left (out, n) and right
(n, in); all of it in float64.
"""

from palimpsest.solve.blocks import apart, together, whole, width_of
from palimpsest.solve.factorised import Factorised
from palimpsest.solve.least_squares import equality_constrained, ridge
from palimpsest.solve.null_space import EarlierKeys, null_space_projected, past
from palimpsest.solve.rank_one import cosine, rank_one
from palimpsest.solve.solution import RELATIVE_STRENGTH, Solution
from palimpsest.solve.ties import ties

__all__ = [
    "RELATIVE_STRENGTH",
    "EarlierKeys",
    "Factorised",
    "Solution",
    "apart",
    "cosine",
    "equality_constrained",
    "null_space_projected",
    "past",
    "rank_one",
    "ridge",
    "ties",
    "together",
    "whole",
    "width_of",
]
