"""Muon for the hidden matrices: momentum whose update is orthogonalised (Newton-Schulz), all equal shapes at
once.

torch.optim.Muon works through matrices one by one and always in bfloat16, which is slow on a processor
without it. Here equal shapes are one batched product, in the precision that is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt

import torch
from torch import Tensor
from torch.nn import Parameter

# The quintic iteration's coefficients, as in torch.optim.Muon (Keller Jordan's "Muon", 2024).
_A, _B, _C = 3.4445, -4.7750, 2.0315
_STEPS = 5


class Muon:
    """Momentum, orthogonalised; the step is scaled to AdamW's root mean square (torch's "match_rms_adamw").

    Arguments:
        parameters: matrices only; their gradients must be present at every step.
        momentum: of the gradient's running sum, Nesterov's form.
        weight_decay: decoupled, times the learning rate.
        dtype: the precision of the Newton-Schulz iteration.
    """

    def __init__(
        self,
        parameters: Iterable[Parameter],
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype,
    ) -> None:
        groups: dict[torch.Size, list[Parameter]] = {}
        for parameter in parameters:
            # A tall matrix shares its group with its transpose: the iteration wants wide ones anyway.
            groups.setdefault(torch.Size(sorted(parameter.shape)), []).append(parameter)
        self._groups = list(groups.values())
        self._buffers = [torch.zeros(len(group), *shape, device=group[0].device) for shape, group in groups.items()]
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.dtype = dtype

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """One update with the parameters' present gradients."""
        for group, buffer in zip(self._groups, self._buffers, strict=True):
            gradient = torch.stack([_wide(_gradient(parameter)) for parameter in group])
            buffer.lerp_(gradient, 1 - self.momentum)
            update = orthogonalise(gradient.lerp(buffer, self.momentum).to(self.dtype)).to(buffer.dtype)
            rate = learning_rate * 0.2 * sqrt(max(buffer.shape[1:]))
            for parameter, change in zip(group, update, strict=True):
                parameter.mul_(1 - learning_rate * self.weight_decay)
                parameter.sub_(change if parameter.shape == change.shape else change.T, alpha=rate)


def orthogonalise(matrices: Tensor) -> Tensor:
    """Roughly U V^T of each matrix's singular value decomposition: [n, rows, columns] with rows <= columns."""
    x: Tensor = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x


def _gradient(parameter: Parameter) -> Tensor:
    if parameter.grad is None:
        raise RuntimeError("a matrix has no gradient")
    return parameter.grad


def _wide(matrix: Tensor) -> Tensor:
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
