"""Directions of low curvature: where a change of weights costs what a model can do next to nothing (CrispEdit, K-FAC).

For a linear layer y = W u that reads a text, with L the sum of -log p of the text's own tokens and g = dL/dy, the cost
of a change is about tr(B dW A dW^T) / 2 with the factors

    A = E[u u^T] = Ua diag(a) Ua^T  (in, in),      B = E[g g^T] = Ub diag(b) Ub^T  (out, out)

(K-FAC, arXiv:1503.05671; CrispEdit, arXiv:2602.15823). In their bases direction (i, j) has the curvature b_i a_j. The
steepest ones, which together hold a share `energy` of the whole, are given up, and P keeps the others, M:

    P(G) = Ub ((Ub^T G Ua) * M) Ua^T,      M_ij = [b_i a_j < theta]
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from palimpsest.errors import ConfigError
from palimpsest.statistics import Spectrum, decompose


@dataclass(frozen=True, eq=False)
class LowCurvature:
    """P, of one matrix.

    Arguments:
        into: Ua, (in, in), orthonormal.
        out: Ub, (out, out), orthonormal.
        kept: M, (out, in), true where a change may lie.
        curvatures: (out, in), b_i a_j, none negative.
    """

    into: Tensor
    out: Tensor
    kept: Tensor
    curvatures: Tensor

    def like(self, tensor: Tensor) -> LowCurvature:
        """The same on a tensor's device and in its dtype, but for the curvatures."""
        return replace(self, into=self.into.to(tensor), out=self.out.to(tensor), kept=self.kept.to(tensor))

    def turned(self, delta: Tensor) -> Tensor:
        """Ub^T delta Ua, (out, in): a change in the bases of the factors, those directions only that are kept."""
        return (self.out.to(delta).T @ delta @ self.into.to(delta)) * self.kept.to(delta)

    def back(self, turned: Tensor) -> Tensor:
        """Ub turned Ua^T, (out, in)."""
        return self.out.to(turned) @ turned @ self.into.to(turned).T

    def apply(self, delta: Tensor) -> Tensor:
        """P(delta), (out, in)."""
        return self.back(self.turned(delta))

    def cost(self, delta: Tensor) -> float:
        """tr(B dW A dW^T): the curvature of the text's loss along a change, (out, in)."""
        delta = delta.double()
        return float(((self.out.to(delta).T @ delta @ self.into.to(delta)).square() * self.curvatures.to(delta)).sum())

    def facts(self) -> dict[str, float]:
        """For a method's diagnostics: the share of the directions that is kept, and of the curvature in them."""
        total = float(self.curvatures.sum())
        kept = float((self.curvatures * self.kept.to(self.curvatures)).sum())
        return {"directions_kept": float(self.kept.double().mean()), "curvature_kept": kept / total if total else 0.0}


def low_curvature(inputs: Spectrum, outputs: Spectrum, energy: float, *, spared: Tensor | None = None) -> LowCurvature:
    """P from the spectra of A and B.

    Arguments:
        energy: the share that is given up, at least; 0 for nothing.
        spared: (in, r), orthonormal inputs for which nothing may be written, whatever their curvature.

    Raises `ConfigError` where no direction is left.
    """
    free = inputs.vectors.shape[0]
    if spared is not None and spared.shape[1]:
        basis = spared.to(inputs.vectors)
        moment = (inputs.vectors * inputs.values) @ inputs.vectors.T
        away = moment - basis @ (basis.T @ moment)
        # Those that are spared come last of all, below what has no energy.
        lowered = away - (away @ basis) @ basis.T - basis @ basis.T
        values, vectors = torch.linalg.eigh((lowered + lowered.T) / 2)
        # Ascending: the spared are the first r.
        free = len(values) - basis.shape[1]
        vectors = torch.cat([basis, vectors[:, basis.shape[1] :]], dim=1)
        inputs = Spectrum(torch.cat([values[: basis.shape[1]] * 0, values[basis.shape[1] :].clamp(min=0)]), vectors)
    curvatures = torch.outer(outputs.values, inputs.values.to(outputs.values))
    kept = curvatures < _threshold(curvatures, energy)
    kept[:, : kept.shape[1] - free] = False
    if not kept.any():
        raise ConfigError(
            "No direction is left to change the model in.",
            expected="a share of the curvature below 1",
            found=f"{energy:g}",
            where="option energy",
            remedy="lower energy, for instance to 0.8",
        )
    return LowCurvature(inputs.vectors, outputs.vectors, kept, curvatures)


def _threshold(curvatures: Tensor, energy: float) -> float:
    """Theta: the curvature at which the cumulated share, from the steepest down, first reaches `energy`."""
    if energy == 0:
        return float("inf")
    steepest = curvatures.flatten().sort(descending=True).values
    share = steepest.cumsum(0)
    at = int(torch.searchsorted(share, energy * share[-1]))
    return float(steepest[min(at, len(steepest) - 1)])


def joined(spectrum: Spectrum, count: int, products: Tensor, more: int, *, weight: float = 1.0) -> Spectrum:
    """The spectrum of a second moment over these and other vectors.

    Arguments:
        count: of how many vectors the spectrum is.
        products: (width, width), the sum of v v^T over the others.
        more: how many they are.
        weight: of one of them, against one of the first.
    """
    moment = (spectrum.vectors * spectrum.values) @ spectrum.vectors.T
    return decompose((count * moment + weight * products.to(moment)) / (count + weight * more))
